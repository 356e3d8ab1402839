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
        assert_eq!(output.status.code(), Some(1));
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
