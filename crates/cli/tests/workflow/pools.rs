//! Machines whose volumes are in other pools than the default one.

use sistemo_model::Bytes;
use sistemo_testkit::{LoopFilesystem, LoopKind, Requirement, met};

use crate::sistemo::Sistemo;

/// A pool in a file as Qubes OS R3.2 has it.
pub(crate) fn boots_from_a_pool_of_the_qubes_document(sistemo: &Sistemo) {
    let directory = sistemo.data_dir().with_file_name("qubes-vm");
    let conf = format!(
        "[default] ; poolname\ndriver=xen ; the default xen storage\n\n\
         [foo]\ndriver=xen\ndir_path={}\n",
        directory.display()
    );
    std::fs::write(sistemo.data_dir().join("storage.conf"), conf).unwrap();
    sistemo.run("machine deploy debian --name d -P foo");
    let root = sistemo.json("volume show d-root");
    assert!(
        root["path"]
            .as_str()
            .unwrap()
            .starts_with(directory.to_str().unwrap()),
        "{root}"
    );
    assert_eq!(sistemo.guest("d", "hostname"), "d");
    sistemo.run("machine delete d -y");
}

/// The root in overlays of qcow2, the data in subvolumes of btrfs, and a history of both.
pub(crate) fn lives_in_pools_of_several_drivers(sistemo: &Sistemo) {
    if !met(&[Requirement::Root, Requirement::Program("mkfs.btrfs")]) {
        return;
    }
    let filesystem = LoopFilesystem::new(LoopKind::Btrfs, Bytes::from_mib(4 << 10));
    let layers = sistemo.data_dir().with_file_name("layers");
    let subvolumes = filesystem.path().join("pool");
    sistemo.run(&format!(
        "pool add layers qcow2 -O dir_path={}",
        layers.display()
    ));
    sistemo.run(&format!(
        "pool add subvolumes btrfs -O dir_path={}",
        subvolumes.display()
    ));
    sistemo.run("volume create 1G --name records -P subvolumes");
    sistemo.run("machine deploy debian --name many -P layers --attach records");

    let root = sistemo.json("volume show many-root");
    assert_eq!(
        (&root["format"], &root["driver"]),
        (&"qcow2".into(), &"qcow2".into())
    );
    let seen = sistemo.guest(
        "many",
        "lsblk -b -d -n -o NAME,SIZE,MOUNTPOINTS /dev/vda /dev/vdb",
    );
    assert_eq!(
        seen.split_whitespace().collect::<Vec<_>>(),
        ["vda", "2147483648", "/", "vdb", "1073741824"]
    );
    sistemo.guest("many", "mkdir /data && mount /dev/vdb /data");
    sistemo.guest("many", "echo early | tee /data/when /root/when && sync");

    // While it runs: what comes later is not in the snapshots.
    sistemo.run("volume snapshot create many-root --name before");
    sistemo.run("volume snapshot create records --name before");
    sistemo.guest("many", "echo late | tee /data/when /root/when && sync");
    sistemo.run("volume clone many-root other-root --snapshot before");
    sistemo.run("volume clone records other-records --snapshot before");
    sistemo.run("machine deploy --volume other-root --name other --attach other-records");
    sistemo.guest("other", "mkdir -p /data && mount /dev/vdb /data");
    assert_eq!(
        sistemo.guest("other", "cat /root/when /data/when"),
        "early\nearly"
    );
    assert_eq!(
        sistemo.guest("many", "cat /root/when /data/when"),
        "late\nlate"
    );

    // Back to the snapshots, and the clones stay as they are.
    sistemo.run("machine stop many");
    sistemo.run("volume revert many-root before -y");
    sistemo.run("volume revert records before -y");
    sistemo.run("machine start many");
    sistemo.guest("many", "mkdir -p /data && mount /dev/vdb /data");
    assert_eq!(
        sistemo.guest("many", "cat /root/when /data/when"),
        "early\nearly"
    );

    // The image is in the pool once; a second machine is a clone of it and takes next to nothing.
    sistemo.run("machine deploy debian --name second -P layers --no-start");
    let used = sistemo.json("volume show second-root")["used_bytes"]
        .as_u64()
        .unwrap();
    assert!(used < 1 << 20, "{used}");
    for machine in ["many", "other", "second"] {
        sistemo.run(&format!("machine delete {machine} -y --purge"));
    }
    sistemo.run("volume delete -y --purge records other-records other-root");
    sistemo.run("pool remove layers");
    sistemo.run("pool remove subvolumes");
}
