//! A machine's volumes kept while something like a database writes to all of them.

use std::process::Command;

use super::Sistemo;
use crate::sistemo::text;

/// Appends a record, and replaces a table by a whole new one, on both disks, without end.
const WRITER: &str = "n=0; while :; do n=$((n+1)); for d in /data /var/lib; do \
     echo record $n >> $d/journal; cp $d/journal $d/table.new; sync $d/table.new; \
     mv $d/table.new $d/table; done; done";

/// Keeps the volumes of `db1` while it writes, and looks at clones of them: offline, and from a
/// machine that boots them. Leaves all as it was.
pub(crate) fn keeps_clean_filesystems_of_a_machine_that_writes(sistemo: &Sistemo) {
    let started = format!("systemd-run --unit writer sh -c '{}'", escaped(WRITER));
    sistemo.guest("db1", &started);
    sistemo.guest("db1", "until [ -s /var/lib/table ]; do sleep 1; done");
    let taken = sistemo.json("machine snapshot db1 --name live");
    assert_eq!(taken["frozen"], true, "the guest's agent answers: {taken}");
    assert!(taken["pause_ms"].as_u64().unwrap() > 0, "{taken}");
    assert_eq!(taken["volumes"].as_array().unwrap().len(), 3, "{taken}");
    // It was thawed, and writes on.
    let count = "wc -l < /var/lib/journal";
    let before: u64 = sistemo.guest("db1", count).parse().unwrap();
    let grown = format!("until [ $({count}) -gt {before} ]; do sleep 1; done");
    sistemo.guest("db1", &grown);
    sistemo.guest(
        "db1",
        "systemctl stop writer; rm -f /data/table* /data/journal",
    );

    sistemo.run("machine clone db1 looked --snapshot live");
    let volumes = ["looked-root", "looked-pgdata"];
    for volume in volumes {
        let path = sistemo.json(&format!("volume show {volume}"))["path"].clone();
        let mut check = Command::new("/sbin/e2fsck");
        let output = check.args(["-f", "-n", path.as_str().unwrap()]).output();
        let output = output.unwrap();
        assert!(
            output.status.success(),
            "{volume}: {}",
            text(&output.stdout)
        );
    }
    sistemo.run("machine start looked");
    sistemo.guest("looked", "mkdir -p /data && mount /dev/vdb /data");
    for directory in ["/data", "/var/lib"] {
        // The table is the journal, or lacks its last record.
        let whole = format!("cd {directory} && head -n $(wc -l < table) journal | cmp - table");
        sistemo.guest("looked", &whole);
    }
    let said = sistemo.guest("looked", "journalctl -kb --no-pager | grep EXT4-fs");
    assert!(!said.contains("recover"), "nothing is replayed: {said}");
    sistemo.run("machine delete looked -y --purge");
    for volume in ["looked-pgdata", "looked-a-name-of-more-than-20-characters"] {
        sistemo.run(&format!("volume delete {volume} -y --purge"));
    }
    for volume in ["db1-root", "pgdata", "a-name-of-more-than-20-characters"] {
        sistemo.run(&format!("volume snapshot delete {volume} live -y"));
    }
}

fn escaped(script: &str) -> String {
    // systemd-run takes `$` for its own.
    script.replace('$', "$$")
}
