//! The command line.

use std::time::Duration;

const USAGE: &str = "usage: blkio-load --path SOCKET [--rw randread|randwrite|read|write] \
[--bs 4096] [--qd 32] [--time 3] [--warm 0.5] [--queue-size 512] [--cpu 1] [--poll 1|0] \
[--huge 0|1] [--idle-n 0 --idle-prefix PREFIX] [--wake-cpu 0]
--qd 0 only connects and sleeps for --time seconds; --path may then be left out
--wake-cpu measures no disk: a thread there and one here do nothing but wake each other";

/// What to run.
pub struct Args {
    pub path: Option<String>,
    pub random: bool,
    pub write: bool,
    pub bs: usize,
    pub qd: usize,
    pub time: Duration,
    pub warm: Duration,
    pub queue_size: i32,
    pub cpu: Option<usize>,
    pub poll: bool,
    pub huge: bool,
    pub idle_n: usize,
    pub idle_prefix: String,
    pub wake_cpu: Option<usize>,
}

impl Args {
    /// Reads the process's arguments.
    pub fn parse() -> Result<Self, String> {
        let mut args = Self {
            path: None,
            random: true,
            write: false,
            bs: 4096,
            qd: 32,
            time: Duration::from_secs(3),
            warm: Duration::from_millis(500),
            queue_size: 512,
            cpu: None,
            poll: true,
            huge: false,
            idle_n: 0,
            idle_prefix: String::new(),
            wake_cpu: None,
        };
        let mut words = std::env::args().skip(1);
        while let Some(flag) = words.next() {
            if flag == "--help" || flag == "-h" {
                println!("{USAGE}");
                std::process::exit(0);
            }
            let value = words
                .next()
                .ok_or_else(|| format!("{flag} needs a value\n{USAGE}"))?;
            args.set(&flag, value)?;
        }
        if args.bs == 0 || !args.bs.is_multiple_of(512) {
            return Err("--bs must be a multiple of 512".into());
        }
        if args.wake_cpu.is_none() && args.path.is_none() && (args.qd > 0 || args.idle_n == 0) {
            return Err(USAGE.into());
        }
        if args.idle_n > 0 && args.idle_prefix.is_empty() {
            return Err("--idle-n needs --idle-prefix".into());
        }
        Ok(args)
    }

    fn set(&mut self, flag: &str, value: String) -> Result<(), String> {
        match flag {
            "--path" => self.path = Some(value),
            "--rw" => {
                (self.random, self.write) = match value.as_str() {
                    "randread" => (true, false),
                    "randwrite" => (true, true),
                    "read" => (false, false),
                    "write" => (false, true),
                    other => return Err(format!("--rw {other}: unknown\n{USAGE}")),
                }
            }
            "--bs" => self.bs = number(flag, &value)?,
            "--qd" => self.qd = number(flag, &value)?,
            "--time" => self.time = seconds(flag, &value)?,
            "--warm" => self.warm = seconds(flag, &value)?,
            "--queue-size" => self.queue_size = number(flag, &value)?,
            "--cpu" => self.cpu = Some(number(flag, &value)?),
            "--poll" => self.poll = number::<u8>(flag, &value)? != 0,
            "--huge" => self.huge = number::<u8>(flag, &value)? != 0,
            "--idle-n" => self.idle_n = number(flag, &value)?,
            "--idle-prefix" => self.idle_prefix = value,
            "--wake-cpu" => self.wake_cpu = Some(number(flag, &value)?),
            _ => return Err(format!("{flag}: unknown\n{USAGE}")),
        }
        Ok(())
    }
}

fn number<T: std::str::FromStr>(flag: &str, value: &str) -> Result<T, String> {
    value
        .parse()
        .map_err(|_| format!("{flag} {value}: not a number"))
}

fn seconds(flag: &str, value: &str) -> Result<Duration, String> {
    Duration::try_from_secs_f64(number(flag, value)?).map_err(|e| format!("{flag} {value}: {e}"))
}
