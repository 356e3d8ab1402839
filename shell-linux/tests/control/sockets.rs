//! Names of listening sockets.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use sluice_linux::socket::bind;

use crate::support::alone;

fn refused(path: &Path) -> String {
    format!("{:#}", bind(path).expect_err("it is refused"))
}

//= spec/vhost-user.md#VHU-12
#[test]
fn b98_only_a_dead_socket_is_replaced() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("file"), "precious").unwrap();
    fs::create_dir(at("directory")).unwrap();
    let _live = UnixListener::bind(at("live")).unwrap();
    drop(UnixListener::bind(at("dead")).unwrap());
    symlink(at("dead"), at("link")).unwrap();
    symlink(at("nowhere"), at("dangling")).unwrap();
    for name in ["file", "directory", "live", "link", "dangling"] {
        let error = refused(&at(name));
        assert!(error.contains(name), "{error}");
        assert!(fs::symlink_metadata(at(name)).is_ok(), "{name} is still there");
    }
    assert_eq!(fs::read(at("file")).unwrap(), b"precious");
    assert!(refused(&at("nowhere/socket")).contains("directory"));

    let (_listener, _path) = bind(&at("dead")).unwrap();
    UnixStream::connect(at("dead")).unwrap();
    assert!(refused(&at("dead")).contains("another process"));
}

#[test]
fn b98_a_path_that_is_too_long_is_said_to_be() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let room = 107 - directory.path().as_os_str().len() - 1;
    let long = directory.path().join("s".repeat(room + 1));
    assert!(refused(&long).contains("108 bytes"));
    let (_listener, _path) = bind(&directory.path().join("s".repeat(room))).unwrap();
}

//= spec/vhost-user.md#VHU-12
#[test]
fn b99_a_socket_is_private_and_removed_by_its_owner_only() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path().join("socket");
    let (listener, path) = bind(&at).unwrap();
    assert_eq!(fs::metadata(&at).unwrap().permissions().mode() & 0o777, 0o660);
    // A successor has taken the name over.
    fs::remove_file(&at).unwrap();
    let (_next, next_path) = bind(&at).unwrap();
    drop((listener, path));
    UnixStream::connect(&at).unwrap();
    drop(next_path);
    assert!(!at.exists());
}
