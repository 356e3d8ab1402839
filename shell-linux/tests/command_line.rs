//! The command line as scripts and people's mistakes use it.

#[allow(dead_code)]
#[path = "support/client.rs"]
mod client;
#[allow(dead_code)]
#[path = "support/disk.rs"]
mod disk;

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use client::{Client, VERSION, message};
use disk::{Disk, SLUICE};
use tempfile::TempDir;

fn sluice(args: &[&str]) -> Command {
    let mut command = Command::new(SLUICE);
    command.args(args).env_remove("SLUICE_LOG").stdin(Stdio::null());
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A pipe that nobody reads any more.
fn closed() -> Stdio {
    let (_, write) = rustix::pipe::pipe().unwrap();
    write.into()
}

fn full() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

//= spec/tools.md#TOOL-2
#[test]
fn no_command_dies_of_an_output_that_is_closed_or_full() {
    let directory = TempDir::new().unwrap();
    let images = directory.path().to_str().unwrap();
    let disk = Disk::serve(&["--blk-memory", "1M"]);
    let socket = disk.socket();
    let socket = socket.to_str().unwrap();
    let commands: [&[&str]; 12] = [
        &["--help"],
        &["--version"],
        &["help", "serve-one"],
        &["verify", "--help"],
        &["qemu-args", "--socket-path", "/s"],
        &["serve-one", "--print-capabilities"],
        &["image", "--dir", images, "list"],
        &["image", "--dir", images, "--json", "list"],
        &["bench", "--socket-path", socket, "--seconds", "0.01", "--warm", "0"],
        &["bench", "--socket-path", socket, "--seconds", "0.01", "--warm", "0", "--json"],
        &["verify", "--socket-path", socket, "--requests", "10"],
        &["verify", "--socket-path", socket, "--requests", "10", "--json"],
    ];
    for args in commands {
        let good = sluice(args).output().unwrap();
        assert!(good.status.success() && !good.stdout.is_empty(), "{args:?} {good:?}");
        let head = sluice(args).stdout(closed()).output().unwrap();
        assert_eq!(head.status.code(), Some(0), "{args:?} {head:?}");
        let stuffed = sluice(args).stdout(full()).output().unwrap();
        assert!(matches!(stuffed.status.code(), Some(1 | 3)), "{args:?} {stuffed:?}");
        assert!(said(&stuffed).contains("cannot print: No space left"), "{args:?} {stuffed:?}");
        let mute = sluice(args).stdout(full()).stderr(full()).status().unwrap();
        assert_eq!(mute.code(), stuffed.status.code(), "{args:?}");
    }
    for args in [&["no-such-command"][..], &["image", "--dir", images, "info", "nothing"]] {
        let good = sluice(args).output().unwrap();
        for stderr in [closed(), full()] {
            assert_eq!(sluice(args).stderr(stderr).status().unwrap().code(), good.status.code());
        }
    }
}

//= spec/tools.md#TOOL-2
#[test]
fn a_daemon_whose_log_is_full_goes_on() {
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("disk.sock");
    let mut serve = sluice(&["serve-one", "--blk-memory", "1M", "--socket-path"]);
    let mut daemon = serve.arg(&socket).stderr(full()).spawn().unwrap();
    let (output, report) = disk::run(&socket, "verify", &["--requests", "100"]);
    assert_eq!(report["verdict"], "PASS", "{output:?}");
    assert_eq!(daemon.try_wait().unwrap(), None, "it lives");
    daemon.kill().unwrap();
    assert_eq!(daemon.wait().unwrap().signal(), Some(9));
}

//= spec/tools.md#TOOL-1
#[test]
fn a_log_level_that_is_none_is_refused() {
    for bad in ["warning", "quiet", "sluice_linux", ""] {
        let args = ["--log", bad, "qemu-args", "--socket-path", "/s"];
        for mut command in [sluice(&args), sluice(&args[2..])] {
            let output = command.env("SLUICE_LOG", bad).output().unwrap();
            assert_eq!(output.status.code(), Some(2), "{bad}: {output:?}");
            assert!(said(&output).contains("is no level"), "{bad}: {output:?}");
        }
    }
    // A target that nothing has is a word of that kind.
    let output = sluice(&["--log", "sluice-linux=debug", "image", "list"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    for good in ["off", "warn", "sluice_linux=trace,info"] {
        let output = sluice(&["--log", good, "qemu-args", "--socket-path", "/s"]).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{good}: {output:?}");
    }
}

//= spec/tools.md#TOOL-4
#[test]
fn errors_that_end_a_command_are_said_without_a_log() {
    let cases: [&[&str]; 3] = [
        &["serve-one", "--socket-path", "/nonexistent/s", "--blk-null", "1M"],
        // The thread of the shard cannot be had: there is no such CPU.
        &["serve-one", "--socket-path", "/tmp/sluice-no-cpu", "--blk-null", "1M", "--cpu", "4095"],
        &["image", "--dir", "/nonexistent", "info", "x"],
    ];
    for args in cases {
        let output = sluice(&[&["--log", "off"], args].concat()).output().unwrap();
        assert!(!output.status.success(), "{args:?} {output:?}");
        assert!(said(&output).starts_with("sluice: "), "{args:?} {output:?}");
        assert_eq!(said(&output).lines().count(), 1, "{args:?} {output:?}");
    }
}

//= spec/tools.md#TOOL-6
#[test]
fn what_it_can_do_is_said_whatever_else_is() {
    let cases: [&[&str]; 7] = [
        &["serve-one", "--print-capabilities"],
        &["serve-one", "--print-capabilities", "--socket-path", "/s", "--blk-file", "/nonexistent"],
        &["serve-one", "--fd", "3", "--print-capabilities", "--queues", "9999"],
        &["serve-one", "--print-capabilities", "--no-such-option"],
        &["--log", "nonsense", "serve-one", "--print-capabilities"],
        &["serve-one", "--socket-path", "--print-capabilities"],
        &["--print-capabilities"],
    ];
    for args in cases {
        let output = sluice(args).env("SLUICE_LOG", "nonsense").output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?} {output:?}");
        let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(said["type"], "block");
        assert!(output.stderr.is_empty(), "{args:?} {output:?}");
    }
    let other = sluice(&["serve-one", "--", "--print-capabilities"]).output().unwrap();
    assert_eq!(other.status.code(), Some(2), "behind -- it is no option");
}

/// What a shell makes of the options that are printed.
fn words(args: &[&str], directory: &TempDir) -> Vec<String> {
    let line = sluice(&[&["qemu-args"], args].concat()).current_dir(directory.path()).output();
    let line = line.unwrap();
    assert!(line.status.success(), "{args:?} {line:?}");
    let script = [b"printf '%s\\0' \\\n".as_slice(), &line.stdout].concat();
    std::fs::write(directory.path().join("script"), script).unwrap();
    let read = Command::new("sh").arg("script").current_dir(directory.path()).output().unwrap();
    assert!(read.status.success() && read.stderr.is_empty(), "{read:?}");
    let words = String::from_utf8(read.stdout).unwrap();
    words.split_terminator('\0').map(str::to_owned).collect()
}

//= spec/tools.md#TOOL-7
#[test]
fn options_for_qemu_survive_a_shell() {
    let directory = TempDir::new().unwrap();
    let here = std::fs::canonicalize(directory.path()).unwrap().display().to_string();
    let names = ["a b", "q'q", "$(touch pwned)", "c,d", "`touch pwned`", "x\ny", "\"", "*", "-s"];
    for name in names {
        for path in [name.to_owned(), format!("{here}/{name}")] {
            let words = words(&[&format!("--socket-path={path}")], &directory);
            let path = format!("{here}/{}", name.replace(',', ",,"));
            assert!(words.contains(&format!("socket,id=sluice0,path={path},reconnect=1")));
            assert_eq!(words.len(), 10, "{words:?}");
        }
    }
    assert!(!directory.path().join("pwned").exists(), "a name is no command");

    let words = words(&["--socket-path=/a", "--socket-path=/b", "--memory", "1536M"], &directory);
    for word in [
        "memory-backend-memfd,id=sluice-mem,size=1536M,share=on",
        "1536M",
        "socket,id=sluice0,path=/a,reconnect=1",
        "vhost-user-blk-pci,chardev=sluice0,num-queues=1",
        "socket,id=sluice1,path=/b,reconnect=1",
        "vhost-user-blk-pci,chardev=sluice1,num-queues=1",
    ] {
        assert_eq!(words.iter().filter(|w| *w == word).count(), 1, "{word} in {words:?}");
    }
}

//= spec/tools.md#TOOL-7
#[test]
fn values_that_qemu_would_refuse_are_refused() {
    let long = format!("/{}", "s".repeat(107));
    let cases: [&[&str]; 8] = [
        // One disk serves one guest, once.
        &["--socket-path", "/./s"],
        &["--memory", "1x"],
        &["--memory", "0"],
        &["--memory", "1000"],
        &["--memory", "1G,id=other"],
        &["--queues", "0"],
        &["--queues", "129"],
        &["--socket-path", &long],
    ];
    for args in cases {
        let output = sluice(&[&["qemu-args", "--socket-path", "/s"], args].concat()).output();
        assert_eq!(output.unwrap().status.code(), Some(2), "{args:?}");
    }
}

/// A daemon's log, line by line.
struct Log(std::path::PathBuf);

impl Log {
    fn lines(&self) -> Vec<String> {
        std::fs::read_to_string(&self.0).unwrap().lines().map(str::to_owned).collect()
    }

    fn wait_for(&self, text: &str) {
        let give_up = Instant::now() + Duration::from_secs(60);
        while !self.lines().iter().any(|line| line.contains(text)) {
            assert!(Instant::now() < give_up, "no `{text}` in {:?}", self.lines());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn logged(directory: &TempDir, socket: &str) -> (std::process::Child, UnixStream, Log) {
    let log = directory.path().join("log");
    let path = directory.path().join(socket);
    let mut serve = sluice(&["serve-one", "--blk-memory", "1M", "--socket-path"]);
    let daemon = serve.arg(&path).stderr(File::create(&log).unwrap()).spawn().unwrap();
    let give_up = Instant::now() + Duration::from_secs(60);
    let stream = loop {
        match UnixStream::connect(&path) {
            Ok(stream) => break stream,
            Err(error) => assert!(Instant::now() < give_up, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    (daemon, stream, Log(log))
}

//= spec/host.md#HOST-1
#[test]
fn a_name_writes_no_lines_of_its_own() {
    let directory = TempDir::new().unwrap();
    let (mut daemon, stream, log) = logged(&directory, "a\n2026 ERROR b\x1b[31m");
    rustix::io::write(&stream, &[0xff; 12]).unwrap();
    log.wait_for("connection closed");
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    let forged = |line: &String| line.starts_with("2026 ERROR b") || line.contains('\x1b');
    assert!(!log.lines().iter().any(forged), "{:?}", log.lines());
    assert!(log.lines().iter().any(|line| line.contains("a\\n2026 ERROR b")), "it can be seen");

    let output = sluice(&["serve-one", "--blk-file", "a\nb", "--socket-path", "s"]).output();
    assert_eq!(said(&output.unwrap()).lines().count(), 1);
    // What is said of the command line itself has more lines, and none of them is a word's.
    for bad in [
        &["image", "info", "a\n2026 ERROR b\x1b[31m"][..],
        &["--log=warn,\n2026 ERROR b", "image", "list"],
        &["bench", "--socket-path", "s", "--seconds", "1\n2026 ERROR b"],
        &["no-such-command\n2026 ERROR b"],
    ] {
        let output = sluice(bad).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{bad:?} {output:?}");
        let forged = |line: &str| line.starts_with("2026") || line.contains('\x1b');
        assert!(!said(&output).lines().any(forged), "{bad:?} {}", said(&output));
    }
}

//= spec/limits.md#LIM-5
#[test]
fn connections_that_come_and_go_fill_no_log() {
    let directory = TempDir::new().unwrap();
    let (mut daemon, first, log) = logged(&directory, "disk.sock");
    drop(first);
    let connect = || UnixStream::connect(directory.path().join("disk.sock")).unwrap();
    let begin = Instant::now();
    for _ in 0..500 {
        let mut client = Client::new(connect());
        client.negotiate();
        assert!(client.is_served());
        drop(client);
        // No message at all.
        let garbage = Client::new(connect());
        garbage.bytes(&message(9999, VERSION + 1, &[]), &[]);
        garbage.wait_closed();
    }
    // Another cause is heard of all the same.
    let cut = Client::new(connect());
    cut.bytes(&message(1, VERSION, &[])[..5], &[]);
    log.wait_for("in the middle of a message");
    log.wait_for("more lines like this: front end connected");
    let periods = usize::try_from(begin.elapsed().as_secs() / 10).unwrap() + 2;
    let lines = log.lines();
    assert!(lines.len() < 60 * periods, "{} lines in {periods} periods", lines.len());
    let left_out = |line: &String| line.split("left_out=").nth(1)?.parse::<usize>().ok();
    let count: usize = lines.iter().filter_map(left_out).sum();
    assert!(count > 1000, "{count} are said to be left out");
    daemon.kill().unwrap();
    daemon.wait().unwrap();
}

//= spec/tools.md#TOOL-5
#[test]
fn exit_codes_tell_a_wrong_disk_from_nobody_there_and_from_wrong_usage() {
    let directory = TempDir::new().unwrap();
    let at = |name: &str| directory.path().join(name).display().to_string();
    std::fs::write(at("data.raw"), vec![b'x'; 1 << 20]).unwrap();
    let [good, forgetful, full] =
        [&["--blk-memory", "1M"][..], &["--blk-null", "1M"], &["--blk-file", &at("data.raw")]]
            .map(Disk::serve);
    let [good, forgetful, full] =
        [&good, &forgetful, &full].map(|disk| disk.socket().display().to_string());
    let verify = |socket: &str, args: &[&str]| {
        let given = [&["verify", "--requests", "500", "--socket-path", socket], args].concat();
        sluice(&given).output().unwrap().status.code()
    };
    assert_eq!(verify(&good, &[]), Some(0));
    assert_eq!(verify(&forgetful, &["--yes"]), Some(1), "wrong");
    assert_eq!(verify(&full, &[]), Some(2), "to be confirmed");
    assert_eq!(verify(&good, &["--depth", "0"]), Some(2), "wrong usage");
    assert_eq!(verify(&good, &["--queues", "9"]), Some(2), "wrong usage");
    assert_eq!(verify(&at("nothing"), &[]), Some(4), "nobody");
    let code = |args: &[&str]| sluice(args).output().unwrap().status.code();
    assert_eq!(code(&["bench", "--socket-path", &at("nothing")]), Some(4), "nobody");
    assert_eq!(code(&["bench", "--socket-path", &good, "--bs", "100"]), Some(2), "wrong usage");
    let missing = ["verify", "--kill", "1", "--dir", "/nonexistent"];
    assert_eq!(code(&missing), Some(3), "it could not be tried");
    assert_eq!(code(&["serve-one", "--socket-path", &good, "--blk-null", "1M"]), Some(5));
}

//= spec/tools.md#TOOL-5
#[test]
fn values_that_nothing_can_be_served_with_are_wrong_usage() {
    let directory = TempDir::new().unwrap();
    let at = |name: &str| directory.path().join(name).display().to_string();
    File::create(at("disk.raw")).unwrap().set_len(1 << 20).unwrap();
    let serve = |args: &[&str]| {
        let mut serve = sluice(&["serve-one"]);
        serve.args(args);
        if !args.contains(&"--fd") && !args.contains(&"--socket-path") {
            serve.args(["--socket-path", &at("s")]);
        }
        let output = serve.output().unwrap();
        assert!(!said(&output).contains("serving"), "{args:?} {output:?}");
        assert!(!said(&output).contains("panicked"), "{args:?} {output:?}");
        output.status.code()
    };
    let (null, file) = (["--blk-null", "1M"], at("disk.raw"));
    for bad in [
        &[][..],
        &["--blk-null", "0"],
        &["--blk-null", "100"],
        &["--blk-memory", "0"],
        &["--blk-memory", "513"],
        &["--blk-file", &file, "--block-size", "0"],
        &["--blk-file", &file, "--block-size", "1024"],
        &["--blk-null", "1M", "--count", "0"],
        &["--blk-null", "1M", "--cpu", "1023"],
        &["--blk-null", "1M", "--cpu", "99999999"],
        &["--blk-null", "1M", "--read-only"],
        &["--blk-null", "1M", "--serial", "123456789012345678901"],
        &["--blk-null", "1M", "--socket-group", "4294967295"],
        &["--blk-null", "1M", "--socket-group", "4294967296"],
        &["--blk-null", "1M", "--socket-group", "+5"],
        &["--blk-null", "1M", "--socket-group", ""],
        &["--blk-null", "1M", "--socket-path", "/"],
        &["--blk-null", "1M", "--socket-path", "/tmp/"],
        &["--blk-null", "1M", "--socket-path", ".."],
        &["--blk-null", "1M", "--fd", "0"],
        &["--blk-null", "1M", "--fd", "9999"],
    ] {
        assert_eq!(serve(bad), Some(2), "{bad:?}");
    }
    assert_eq!(serve(&["--blk-file", &at("no.raw")]), Some(4), "there is none");
    let demo = sluice(&["demo", "--size", "100", "--dir", &at("demo")]).output().unwrap();
    assert_eq!(demo.status.code(), Some(2), "{demo:?}");
    let requests = ["verify", "--requests", "0", "--socket-path", &at("s")];
    assert_eq!(sluice(&requests).output().unwrap().status.code(), Some(2), "no verdict of nothing");
    // What is allowed is.
    let _ends = Disk::serve(&[&null[..], &["--serial", "12345678901234567890"]].concat());
    let _ends = Disk::serve(&["--blk-file", &file, "--block-size", "4k"]);
}

//= spec/tools.md#TOOL-5
#[test]
fn help_says_what_scripts_want_to_know() {
    let commands =
        ["", "demo", "serve-one", "bench", "verify", "image", "image create", "qemu-args"];
    for command in commands {
        let args: Vec<_> = command.split_whitespace().chain(["--help"]).collect();
        let output = sluice(&args).output().unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        for part in ["Exit codes:", "Files:", "Environment:", "SLUICE_LOG"] {
            assert!(help.contains(part), "no {part} in the help of `{command}`");
        }
    }
}

//= spec/host.md#HOST-2
#[test]
fn a_terminal_that_goes_away_does_not_end_the_daemon() {
    use rustix::process::{Pid, Signal, kill_process};
    let directory = TempDir::new().unwrap();
    let (mut daemon, first, _log) = logged(&directory, "disk.sock");
    drop(first);
    let pid = Pid::from_child(&daemon);
    for _ in 0..3 {
        kill_process(pid, Signal::HUP).unwrap();
        let socket = directory.path().join("disk.sock");
        assert!(Client::new(UnixStream::connect(socket).unwrap()).is_served());
    }
    kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(daemon.wait().unwrap().code(), Some(0), "and SIGTERM does, in order");
}

//= spec/host.md#HOST-2
#[test]
fn a_demonstration_goes_with_its_terminal_unless_it_was_told_not_to() {
    use rustix::process::{Pid, Signal, kill_process};
    for (before, end) in [(&["env"][..], Signal::HUP), (&["nohup"], Signal::TERM)] {
        let directory = TempDir::new().unwrap();
        let mut demo = Command::new(before[0]);
        demo.args([SLUICE, "demo", "--size", "1M", "--dir"]).arg(directory.path());
        demo.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut demo = demo.spawn().unwrap();
        let socket = directory.path().join("demo.sock");
        let give_up = Instant::now() + Duration::from_secs(60);
        while !socket.exists() {
            assert!(Instant::now() < give_up, "no socket");
            std::thread::sleep(Duration::from_millis(10));
        }
        let pid = Pid::from_child(&demo);
        kill_process(pid, Signal::HUP).unwrap();
        if end == Signal::TERM {
            assert!(Client::new(UnixStream::connect(&socket).unwrap()).is_served());
            kill_process(pid, end).unwrap();
        }
        while demo.try_wait().unwrap().is_none() {
            assert!(Instant::now() < give_up, "it stays after {end:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(demo.wait().unwrap().code(), Some(0), "{before:?}");
        assert!(!socket.exists());
    }
}
