//! Commands beside the plain tools that do the same, in turn, each as a whole process: what the
//! disk and the other users of this machine do to one, they do to the other. Quote the ratio.
//!
//! `cargo bench -p sistemo-cli --bench commands`

#![expect(
    clippy::unwrap_used,
    reason = "a bench that cannot go on has nothing to tell"
)]

mod beside;

use beside::{compare, header, shell, sistemo};

fn main() {
    let home = tempfile::tempdir_in("/var/tmp").unwrap();
    let data_dir = home.path().join("data");
    let plain = home.path().join("plain");
    std::fs::create_dir(&plain).unwrap();

    header();
    let mut number = 0;
    let mut create = |label: &str, filesystem: &str, script: &str| {
        compare(
            label,
            || {
                number += 1;
                let name = format!("{filesystem}-{number}");
                sistemo(
                    &data_dir,
                    &[
                        "volume", "create", "5G", "--name", &name, "--fs", filesystem,
                    ],
                )
            },
            || shell(&plain, script),
        );
    };
    create(
        "create 5G, no filesystem / truncate, sync",
        "none",
        "truncate -s 5G $$.raw && sync $$.raw .",
    );
    create(
        "create 5G, ext4 / truncate, mkfs.ext4, sync",
        "ext4",
        "truncate -s 5G $$.raw && mkfs.ext4 -q -F \
         -E lazy_itable_init=1,lazy_journal_init=1,nodiscard,assume_storage_prezeroed=1 $$.raw \
         && sync $$.raw .",
    );
    let mut size = 5 * 1024;
    compare(
        "resize / truncate, sync",
        || {
            size += 1;
            sistemo(
                &data_dir,
                &["volume", "resize", "none-1", &format!("{size}M")],
            )
        },
        || shell(&plain, "truncate -s +1M grown.raw && sync grown.raw ."),
    );
    while number < 1000 {
        number += 1;
        let name = format!("many-{number}");
        sistemo(
            &data_dir,
            &["volume", "create", "1M", "--name", &name, "--fs", "none"],
        )();
    }
    for file in 0..1000 {
        std::fs::File::create(plain.join(format!("many-{file}"))).unwrap();
    }
    compare(
        &format!("list {number} volumes / ls -ls 1000 files"),
        || sistemo(&data_dir, &["volume", "list"]),
        || shell(&plain, "ls -ls"),
    );
}
