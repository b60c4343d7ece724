//! Clones and snapshots beside the plain tools that make the same, durable when they return.
//!
//! `cargo bench -p sistemo-cli --bench history`, as root: it mounts an XFS, a btrfs and an ext4.
//! The volume has 1 GiB, with 410 MiB of data in 410 extents.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench that cannot go on has nothing to tell, and this one tells more than times"
)]

mod beside;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use beside::{compare, header, shell, sistemo};
use sistemo_host::system;
use sistemo_model::Bytes;
use sistemo_testkit::{LoopFilesystem, LoopKind};

const MIB: u64 = 1 << 20;
const EXTENTS: u64 = 410;
const MANY_EXTENTS: u64 = 200_000;

/// What the plain tools do beside each driver; `$$` is new in every run.
struct Plain {
    /// Makes what they work on of `base.raw`.
    prepare: &'static str,
    clone: &'static str,
    snapshot: &'static str,
    /// Brings back what `keep` holds; what there was goes.
    revert: &'static str,
}

const REFLINK: Plain = Plain {
    prepare: "cp --reflink=always base.raw keep.raw",
    clone: "cp --reflink=always base.raw $$.raw && sync $$.raw",
    snapshot: "cp --reflink=always base.raw $$.raw && sync $$.raw",
    revert: "cp --reflink=always keep.raw $$.raw && sync $$.raw && mv $$.raw base.raw",
};
const SUBVOLUME: Plain = Plain {
    prepare: "btrfs subvolume create base && cp --reflink=always base.raw base/raw && \
              btrfs subvolume snapshot base keep",
    clone: "btrfs subvolume snapshot base $$",
    snapshot: "btrfs subvolume snapshot -r base $$",
    revert: "btrfs subvolume snapshot keep $$ && btrfs subvolume delete base && mv $$ base",
};
const QEMU_IMG: Plain = Plain {
    prepare: "qemu-img convert -f raw -O qcow2 base.raw base.qcow2 && \
              qemu-img snapshot -c keep base.qcow2",
    clone: "qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 $$.qcow2 && sync $$.qcow2",
    snapshot: "qemu-img snapshot -c $$ base.qcow2 && sync base.qcow2",
    revert: "qemu-img snapshot -a keep base.qcow2 && sync base.qcow2",
};
const COPY: Plain = Plain {
    prepare: "cp base.raw keep.raw",
    clone: "cp base.raw $$.raw && sync $$.raw",
    snapshot: "cp base.raw $$.raw && sync $$.raw",
    revert: "cp keep.raw $$.raw && sync $$.raw && mv $$.raw base.raw",
};

fn main() {
    let home = tempfile::tempdir_in("/var/tmp").unwrap();
    let source = home.path().join("source.raw");
    write_extents(&source, 1024 * MIB, EXTENTS, MIB);

    header();
    for (driver, kind, plain) in [
        ("file-reflink", LoopKind::Xfs, REFLINK),
        ("file-reflink", LoopKind::Btrfs, REFLINK),
        ("btrfs", LoopKind::Btrfs, SUBVOLUME),
        ("qcow2", LoopKind::Ext4, QEMU_IMG),
        ("file", LoopKind::Ext4, COPY),
    ] {
        let filesystem = LoopFilesystem::new(kind, Bytes::from_mib(64 << 10));
        let data = home.path().join(format!("{driver}-{kind:?}"));
        let place = Place::new(data, filesystem.path(), driver, &source, &plain);
        place.compare_with(&format!("{driver}, {kind:?}"), &plain);
    }
    let filesystem = LoopFilesystem::new(LoopKind::Btrfs, Bytes::from_mib(64 << 10));
    let place = Place::new(
        home.path().join("many"),
        filesystem.path(),
        "btrfs",
        &source,
        &SUBVOLUME,
    );
    place.compare_fragmented(&home.path().join("many.raw"));
}

/// A file with so many parts of data, with holes of about the same size between them.
fn write_extents(path: &Path, size: u64, extents: u64, length: u64) {
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    let stride = (size / extents) & !4095;
    let data: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
    for extent in 0..extents {
        file.write_all_at(&data, extent * stride).unwrap();
    }
}

/// A pool on a filesystem with the plain tool's files beside it, and a data directory elsewhere.
struct Place<'a> {
    data: PathBuf,
    filesystem: &'a Path,
}

impl Place<'_> {
    fn new<'a>(
        data: PathBuf,
        filesystem: &'a Path,
        driver: &str,
        source: &Path,
        tools: &Plain,
    ) -> Place<'a> {
        let place = Place { data, filesystem };
        let directory = format!("dir_path={}", filesystem.join("pool").display());
        place.sistemo(&["pool", "add", "bench", driver, "-O", &directory]);
        place.import(source, "base");
        let source = source.display();
        let plain = filesystem.join("plain");
        std::fs::create_dir(&plain).unwrap();
        let copy = format!("cp --sparse=auto {source} base.raw");
        shell(&plain, &format!("{copy} && {} && sync -f .", tools.prepare))();
        place
    }

    fn sistemo(&self, arguments: &[&str]) {
        sistemo(&self.data, arguments)();
    }

    fn import(&self, source: &Path, name: &str) {
        let source = source.to_str().unwrap();
        self.sistemo(&["volume", "import", source, "--name", name, "-P", "bench"]);
    }

    fn compare_with(&self, label: &str, plain: &Plain) {
        let before = self.free();
        let (mut clones, mut snapshots) = (0, 0);
        self.compare("clone", plain.clone, label, || {
            clones += 1;
            format!("volume clone base clone-{clones}")
        });
        self.compare("snapshot", plain.snapshot, label, || {
            snapshots += 1;
            format!("volume snapshot create base --name s{snapshots}")
        });
        // Both tools together, which makes it an upper bound for either.
        let taken = before.saturating_sub(self.free()) / (2 * (clones + snapshots));
        println!(
            "    {} KiB of space each ({clones} clones, {snapshots} snapshots, and as many by the \
             plain tool)",
            taken / 1024,
        );
        self.compare("revert", plain.revert, label, || {
            "volume revert base s1 --discard -y".to_owned()
        });
        if plain.clone == COPY.clone {
            // As many copies again would fill the disk of many a host.
            return;
        }
        let kept = plain.snapshot.replace("$$", "kept-$$");
        let keeping = format!("{kept} && {}", plain.revert);
        self.compare("revert that keeps", &keeping, label, || {
            "volume revert base s1".to_owned()
        });
    }

    fn compare(&self, what: &str, plain: &str, label: &str, mut command: impl FnMut() -> String) {
        let beside = self.filesystem.join("plain");
        compare(
            &format!("{what} / {} ({label})", tool(plain)),
            || {
                self.settle();
                let command = command();
                let arguments: Vec<_> = command.split(' ').collect();
                sistemo(&self.data, &arguments)
            },
            || {
                self.settle();
                shell(&beside, plain)
            },
        );
    }

    /// A snapshot of a volume of very many extents, beside one of an empty volume.
    fn compare_fragmented(&self, source: &Path) {
        let data = &self.data;
        write_extents(source, MANY_EXTENTS * 8192, MANY_EXTENTS, 4096);
        self.import(source, "fragmented");
        self.sistemo(&[
            "volume", "create", "1600M", "--name", "empty", "--fs", "none", "-P", "bench",
        ]);
        let snapshot = |volume: &'static str, number: u64| {
            let name = format!("s{number}");
            sistemo(
                data,
                &["volume", "snapshot", "create", volume, "--name", &name],
            )
        };
        let (mut ours, mut theirs) = (0, 0);
        compare(
            "snapshot of 200,000 extents / of an empty one (btrfs)",
            || {
                self.settle();
                ours += 1;
                snapshot("fragmented", ours)
            },
            || {
                self.settle();
                theirs += 1;
                snapshot("empty", theirs)
            },
        );
    }

    /// Brings to disk what the run before has left to be written, which is not for the next to pay:
    /// making a btrfs subvolume durable writes whatever anybody has changed.
    fn settle(&self) {
        shell(self.filesystem, "sync -f .")();
    }

    fn free(&self) -> u64 {
        self.settle();
        system::space(self.filesystem).unwrap().free
    }
}

/// The name of the plain tool: its first words.
fn tool(script: &str) -> String {
    let words = script.split(' ');
    words
        .take_while(|word| !word.contains(['.', '$']) && *word != "base" && *word != "keep")
        .collect::<Vec<_>>()
        .join(" ")
}
