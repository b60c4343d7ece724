//! Machines made of another: what a guest finds that is its own, what it shares, what it forgets.

use crate::sistemo::Sistemo;

/// What makes a guest a particular one, as it sees it itself.
pub(crate) fn identity(sistemo: &Sistemo, machine: &str) -> Vec<String> {
    [
        "cat /etc/machine-id",
        "cat /etc/ssh/ssh_host_ed25519_key.pub",
        "hostname",
        "cat /sys/class/net/eth0/address",
    ]
    .map(|line| sistemo.guest(machine, line))
    .to_vec()
}

/// `db2` is stopped, with `pgdata` at `/dev/vdb`, which holds `records` with this checksum;
/// `before` is who it was.
pub(crate) fn makes_machines_of_a_stopped_one(sistemo: &Sistemo, before: &[String], records: &str) {
    sistemo.run("machine clone db2 twin");
    assert_eq!(sistemo.status("twin")["status"], "stopped");

    // From the root of the twin, which has never run, at each start.
    sistemo.run("machine deploy --template twin --name disposable");
    let of_disposable = identity(sistemo, "disposable");
    sistemo.guest("disposable", "echo mine > /root/mine && sync");
    sistemo.run("machine stop disposable");
    assert_eq!(
        sistemo.json("volume show disposable-root")["path"],
        serde_json::Value::Null
    );

    // Nothing was written into the twin's volumes, and yet its guest is another.
    sistemo.run("machine start twin");
    let of_twin = identity(sistemo, "twin");
    for (at, what) in ["machine-id", "host key", "host name", "MAC address"]
        .iter()
        .enumerate()
    {
        assert_ne!(of_twin[at], before[at], "{what}");
        assert_ne!(of_twin[at], of_disposable[at], "{what}");
        assert_ne!(of_disposable[at], before[at], "{what}");
    }
    assert_eq!(of_twin[2], "twin");
    let id = sistemo.status("twin")["id"].as_str().unwrap().to_owned();
    assert_eq!(of_twin[0], id.replace('-', ""));
    assert_eq!(of_twin[3], sistemo.status("twin")["mac"].as_str().unwrap());
    sistemo.guest("twin", "mkdir -p /data && mount /dev/vdb /data");
    assert_eq!(sistemo.guest("twin", "sha256sum /data/records"), records);
    sistemo.guest("twin", "echo update > /root/update && sync");
    let refused = sistemo.refused("machine start disposable");
    assert!(refused.contains("twin (running) writes to"), "{refused}");
    sistemo.run("machine stop twin");

    // What the disposable wrote is gone, and what its template got is there.
    sistemo.run("machine start disposable");
    assert_eq!(sistemo.guest("disposable", "cat /root/update"), "update");
    assert_eq!(
        sistemo.guest("disposable", "test -e /root/mine || echo gone"),
        "gone"
    );
    assert_eq!(sistemo.guest("disposable", "hostname"), "disposable");
    for machine in ["disposable", "twin"] {
        sistemo.run(&format!("machine delete {machine} -y --purge"));
    }
    sistemo.run("volume delete twin-pgdata -y --purge");
}
