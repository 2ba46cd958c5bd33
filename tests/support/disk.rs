//! A small file system of the test's own.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A small file system of the test's own. Needs root, or a user namespace of one's own (see `scripts/test`).
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    pub fn mount(size: &str) -> SmallDisk {
        let path = tempfile::tempdir().unwrap().keep();
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(&path)
            .status();
        assert!(status.unwrap().success(), "cannot mount a tmpfs: run the tests as root");
        SmallDisk(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn remount(&self, options: &str) {
        let status = Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(&self.0).status();
        assert!(status.unwrap().success(), "cannot remount with {options}");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        let _ = std::fs::remove_dir(&self.0);
    }
}
