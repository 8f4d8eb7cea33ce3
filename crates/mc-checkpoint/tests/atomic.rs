//! What is written whole: files that others may read, through links, into pipes and devices.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by a panic")]

use mc_checkpoint::write_atomic;
use std::{
    fs,
    io::{Seek, SeekFrom, Write},
    os::unix::fs::{FileTypeExt, PermissionsExt, symlink},
    path::Path,
    process::Command,
};

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn others_may_read_what_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, plain) = (dir.path().join("ours"), dir.path().join("plain"));
    write_atomic(&ours, |_| Ok(())).unwrap();
    fs::write(&plain, "").unwrap();
    let mode = |path| fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(ours), mode(plain));
}

#[test]
fn who_may_read_it_stays_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret");
    fs::write(&path, "old").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    write_atomic(&path, |file| file.write_all(b"new")).unwrap();
    assert_eq!(
        (fs::metadata(&path).unwrap().permissions().mode() & 0o777, fs::read(&path).unwrap()),
        (0o600, b"new".to_vec())
    );
}

/// What a shell has opened and `/dev/stdout` leads to is written after what is there, and stays the same file.
#[test]
fn what_stdout_leads_to_is_written_on() {
    if !Path::new("/proc/self/fd").exists() {
        return; // A system where such a name is no link.
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    fs::write(&path, "head ").unwrap();
    let held = fs::File::options().append(true).open(&path).unwrap();
    let descriptor = format!("/dev/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&held));
    write_atomic(descriptor, |file| file.write_all(b"tail")).unwrap();
    assert_eq!((fs::read(&path).unwrap(), names(dir.path())), (b"head tail".to_vec(), vec!["log".to_string()]));
}

/// Under /dev too a file is a file: some systems have a disk in memory there.
#[test]
fn a_file_on_a_disk_in_memory_is_replaced() {
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else { return };
    let path = dir.path().join("file");
    for text in ["the first", "another"] {
        write_atomic(&path, |file| file.write_all(text.as_bytes())).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }
    assert_eq!(names(dir.path()), ["file"]);
}

#[test]
fn a_link_stays_and_what_it_leads_to_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::create_dir(path("far")).unwrap();
    fs::write(path("far/there"), "old").unwrap();
    symlink("far/there", path("link")).unwrap();
    symlink("chain", path("start")).unwrap();
    symlink("far/new", path("chain")).unwrap();
    for (link, target) in [("link", "far/there"), ("start", "far/new")] {
        write_atomic(path(link), |file| file.write_all(link.as_bytes())).unwrap();
        assert_eq!(fs::read_to_string(path(target)).unwrap(), link);
        assert!(path(link).is_symlink() && !path(target).is_symlink(), "{link}");
    }
    assert_eq!(
        (names(dir.path()), names(&path("far"))),
        (["chain", "far", "link", "start"].map(String::from).to_vec(), ["new", "there"].map(String::from).to_vec(),)
    );
    symlink("round", path("round")).unwrap();
    assert!(write_atomic(path("round"), |_| Ok(())).is_err());
    assert!(path("round").is_symlink());
}

/// A writer may seek, as one does that writes its header last; whoever reads the pipe gets the whole.
#[test]
fn a_pipe_is_written_to() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let reader = std::thread::spawn({
        let pipe = pipe.clone();
        move || fs::read_to_string(pipe).unwrap()
    });
    write_atomic(&pipe, |file| {
        file.write_all(b"???? and more")?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(b"this")
    })
    .unwrap();
    assert_eq!(reader.join().unwrap(), "this and more");
    assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());
    assert_eq!(names(dir.path()), ["pipe"]);
    // A directory is neither.
    assert!(write_atomic(dir.path(), |file| file.write_all(b"x")).is_err());
}

#[test]
fn a_device_is_written_to() {
    // Through a link, so that a fault here would take the link and not the device.
    let dir = tempfile::tempdir().unwrap();
    let link = |name: &str| {
        let link = dir.path().join(name);
        symlink(Path::new("/dev").join(name), &link).unwrap();
        link
    };
    write_atomic(link("null"), |file| file.write_all(b"x")).unwrap();
    if Path::new("/dev/full").exists() {
        let error = write_atomic(link("full"), |file| file.write_all(b"x")).unwrap_err();
        assert!(error.to_string().contains("full: No space left on device"), "{error}");
    }
    assert!(names(dir.path()).iter().all(|name| dir.path().join(name).is_symlink()));
    assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
}

#[test]
fn an_error_names_what_was_to_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("no/such");
    let error = write_atomic(&path, |_| Ok(())).unwrap_err();
    assert_eq!(error.to_string(), format!("{}: No such file or directory (os error 2)", path.display()));
}
