//! The file system that holds a database: SQLite's write-ahead log needs memory that processes share, and network file systems
//! have none. Asks the system.

use std::path::Path;

/// File systems that other machines may write to, or whose locks and shared memory depend on another program, by their numbers
/// in `statfs`.
const SHARED: [(u32, &str); 16] = [
    (0x0000_6969, "NFS"),
    (0x0000_517b, "SMB"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB 2"),
    (0x6573_5546, "FUSE"),
    (0x0102_1997, "9p"),
    (0x00c3_6400, "Ceph"),
    (0x0bd0_0bd0, "Lustre"),
    (0x4750_4653, "GPFS"),
    (0x7461_636f, "OCFS2"),
    (0x0116_1970, "GFS2"),
    (0x5346_414f, "AFS"),
    (0x6b41_4653, "AFS"),
    (0x7375_7245, "Coda"),
    (0x0000_564c, "NCP"),
    (0x0bee_f5a0, "BeeGFS"),
];

/// Returns the kind of a file system with this number in `statfs`, if a write-ahead log is unsafe on it.
pub(super) fn shared(number: u32) -> Option<&'static str> {
    SHARED.iter().find(|(known, _)| *known == number).map(|(_, name)| *name)
}

/// Returns the kind of the file system that holds a path, if a write-ahead log is unsafe on it. The path must exist.
///
/// # Errors
/// The system cannot tell.
pub(super) fn of(path: &Path) -> Result<Option<&'static str>, rustix::io::Errno> {
    // The number has 32 bits, in a field that is wider and signed on some platforms.
    Ok(shared(rustix::fs::statfs(path)?.f_type as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_file_systems_are_known_and_local_ones_are_not() {
        for (number, name) in [(0x6969, "NFS"), (0xff53_4d42, "CIFS"), (0x6573_5546, "FUSE"), (0x0102_1997, "9p")] {
            assert_eq!(shared(number), Some(name));
        }
        // ext4, XFS, Btrfs, tmpfs, overlayfs, ZFS, proc.
        for number in [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0x794c_7630, 0x2fc1_2fc1, 0x9fa0] {
            assert_eq!(shared(number), None, "{number:x}");
        }
        assert_eq!(of(Path::new("/proc")).unwrap(), None);
        assert!(of(Path::new("/nowhere")).is_err());
    }
}
