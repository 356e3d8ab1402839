//! `sluice bench` and `sluice verify` against `sluice serve-one`, as a person would run them.

#[path = "support/disk.rs"]
mod disk;

use std::process::Output;
use std::time::Duration;

use disk::{Disk, run};
use tempfile::TempDir;

fn error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn an_honest_disk_passes() {
    let disk = Disk::serve(&["--blk-memory", "32M"]);
    for args in [
        &["--requests", "3000", "--queues", "3", "--seed", "1"][..],
        &["--requests", "1000", "--queues", "1", "--depth", "1", "--size-limit", "64k"],
        &["--requests", "2000", "--queues", "1", "--depth", "200"],
        &["--requests", "3000", "--queues", "3", "--seed", "2", "--packed"],
        &["--requests", "2000", "--queues", "1", "--depth", "201", "--packed"],
    ] {
        let (output, report) = run(&disk.socket(), "verify", args);
        assert_eq!(report["verdict"], "PASS", "{report} {}", error(&output));
        assert!(output.status.success());
        assert!(report["writes"].as_u64().unwrap() > 100, "{report}");
    }
    // What it left behind is nobody's, so a load may write over it.
    let (output, report) = run(&disk.socket(), "bench", &["--rw", "randwrite", "--seconds", "0.2"]);
    assert!(output.status.success(), "{}", error(&output));
    assert_eq!(report["errors"], 0);
}

#[test]
fn a_disk_that_forgets_fails() {
    let disk = Disk::serve(&["--blk-null", "32M"]);
    let (output, report) = run(&disk.socket(), "verify", &["--requests", "2000", "--seed", "5"]);
    assert_eq!(report["verdict"], "FAIL", "{report} {}", error(&output));
    assert_eq!(report["seed"], 5);
    assert_eq!(output.status.code(), Some(1));
    assert!(!report["violations"].as_array().unwrap().is_empty());
}

#[test]
fn a_load_is_measured() {
    let disk = Disk::serve(&["--blk-null", "1G"]);
    for args in [
        &["--rw", "read", "--bs", "64k", "--depth", "1"][..],
        &["--rw", "randread", "--wait", "event", "--indirect"],
        &["--rw", "write", "--queues", "2", "--depth", "8"],
        &["--rw", "randread", "--depth", "47", "--packed"],
        &["--rw", "randread", "--wait", "event", "--indirect", "--packed"],
    ] {
        let (output, report) =
            run(&disk.socket(), "bench", &[args, &["--seconds", "0.2"]].concat());
        assert!(output.status.success(), "{}", error(&output));
        for number in ["iops", "mean_us", "p50_us", "p99_us", "p999_us", "bytes_per_s"] {
            assert!(report[number].as_f64().unwrap() > 0.0, "{number}: {report}");
        }
        assert_eq!(report["errors"], 0);
        assert!(report["wait_share"].as_f64().unwrap() >= 0.0);
    }
}

#[test]
fn somebodys_data_is_not_written_over() {
    let directory = TempDir::new().unwrap();
    let image = directory.path().join("disk.raw");
    std::fs::write(&image, vec![b'x'; 1 << 20]).unwrap();
    let disk = Disk::serve(&["--blk-file", image.to_str().unwrap()]);
    for (tool, args) in [("verify", &["--requests", "10"][..]), ("bench", &["--rw", "write"])] {
        let (output, _) = run(&disk.socket(), tool, args);
        assert_eq!(output.status.code(), Some(2));
        assert!(error(&output).contains("--yes"), "{}", error(&output));
    }
    assert_eq!(std::fs::read(&image).unwrap(), vec![b'x'; 1 << 20]);
    let (output, report) = run(&disk.socket(), "verify", &["--requests", "1000", "--yes"]);
    assert_eq!(report["verdict"], "PASS", "{report} {}", error(&output));
}

#[test]
fn a_daemon_that_dies_is_reported_and_not_waited_for() {
    let mut disk = Disk::serve(&["--blk-memory", "32M"]);
    let socket = disk.socket();
    let tool = std::thread::spawn(move || run(&socket, "verify", &["--seconds", "60"]));
    std::thread::sleep(Duration::from_millis(700));
    disk.daemon.kill().unwrap();
    let (output, report) = tool.join().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(report["violations"].to_string().contains("did not come back"), "{report}");
}

/// A sparse image with one block of data.
fn image(directory: &TempDir, bytes: u64, data_at: Option<u64>) -> std::path::PathBuf {
    use std::os::unix::fs::FileExt;
    let path = directory.path().join(format!("{bytes}-{data_at:?}.raw"));
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(bytes).unwrap();
    if let Some(at) = data_at {
        file.write_all_at(&[b'x'; 512], at).unwrap();
    }
    path
}

//= spec/tools.md#TOOL-8
#[test]
fn a_disk_is_blank_when_all_of_it_has_been_looked_at() {
    let directory = TempDir::new().unwrap();
    let refuse = |bytes, data_at, reason: &str| {
        let path = image(&directory, bytes, data_at);
        let disk = Disk::serve(&["--blk-file", path.to_str().unwrap()]);
        let limit = bytes.to_string();
        for (tool, args) in [
            ("verify", &["--requests", "10", "--size-limit", &limit][..]),
            ("bench", &["--rw", "randwrite", "--seconds", "0.1"]),
            ("bench", &["--rw", "write", "--seconds", "0.1", "--depth", "1"]),
        ] {
            let (output, _) = run(&disk.socket(), tool, args);
            assert_eq!(output.status.code(), Some(2), "{tool} {data_at:?} {output:?}");
            let said = error(&output);
            assert!(said.contains("--yes") && said.contains(reason), "{tool} {data_at:?} {said}");
        }
        let written = std::os::unix::fs::MetadataExt::blocks(&path.metadata().unwrap());
        assert!(written <= 8, "nothing was written: {written} blocks");
        disk
    };
    const MIB: u64 = 1 << 20;
    for data_at in [0, MIB, 100 * MIB + 512, 200 * MIB - 512] {
        refuse(200 * MIB, Some(data_at), "holds data");
    }
    // A sample says that it is one.
    let disk = refuse(8192 * MIB, None, "samples of 8G");
    let part = ["--requests", "100", "--size-limit", "4M"];
    let (output, report) = run(&disk.socket(), "verify", &part);
    assert_eq!(report["verdict"], "PASS", "the part was looked at as a whole: {output:?}");
    let load = ["--rw", "write", "--seconds", "0.1", "--yes"];
    let (output, _) = run(&disk.socket(), "bench", &load);
    assert!(output.status.success(), "{output:?}");
}

//= spec/tools.md#TOOL-9
#[test]
fn a_verdict_says_how_much_it_is_about() {
    let disk = Disk::serve(&["--blk-memory", "96M"]);
    let verdict = |limit: &str| {
        let output = std::process::Command::new(disk::SLUICE)
            .args(["verify", "--requests", "100", "--size-limit", limit, "--socket-path"])
            .arg(disk.socket())
            .output()
            .unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        said.lines().last().unwrap().to_owned()
    };
    assert!(verdict("64M").starts_with("PASS for the first 64M of 96M (seed "));
    assert!(verdict("1G").starts_with("PASS (seed "));
    let (_, report) = run(&disk.socket(), "verify", &["--requests", "100"]);
    assert_eq!(
        (&report["size_bytes"], &report["disk_bytes"]),
        (&(64 << 20).into(), &(96 << 20).into())
    );
}

//= spec/tools.md#TOOL-3
#[test]
fn seeds_are_numbers_that_every_reader_knows() {
    let disk = Disk::serve(&["--blk-memory", "1M"]);
    for _ in 0..20 {
        let (_, report) = run(&disk.socket(), "verify", &["--requests", "1"]);
        assert!(report["seed"].as_u64().unwrap() < 1 << 53, "{report}");
    }
    let most = ((1_u64 << 53) - 1).to_string();
    let (_, report) = run(&disk.socket(), "verify", &["--requests", "1", "--seed", &most]);
    assert_eq!(report["seed"].to_string(), most);
    let beyond = (1_u64 << 53).to_string();
    let (output, _) = run(&disk.socket(), "verify", &["--requests", "1", "--seed", &beyond]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}
