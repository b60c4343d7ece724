//! Several processes at once.

use std::collections::HashSet;
use std::thread;

use crate::environment::Environment;

#[test]
fn two_shells_create_200_volumes_each_at_once() {
    let environment = Environment::new();
    thread::scope(|scope| {
        for shell in ["a", "b"] {
            let environment = &environment;
            scope.spawn(move || {
                for number in 0..200 {
                    // Half of the names are made up, which must be unique too.
                    let name = if number % 2 == 0 {
                        format!("--name {shell}{number}")
                    } else {
                        String::new()
                    };
                    let ran = environment.ok(&format!("volume create 16M {name}"));
                    assert_eq!(ran.stderr, "");
                }
            });
        }
    });
    let names: HashSet<String> = environment
        .volumes()
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(names.len(), 400);
    let volumes = environment.ok("volume list -o json").json();
    let mut described: HashSet<String> = HashSet::new();
    for volume in volumes.as_array().unwrap() {
        described.insert(volume["id"].as_str().unwrap().to_owned());
    }
    let files = environment.volume_files();
    assert!(
        files.iter().all(|file| described.contains(&file[..36])),
        "a file that belongs to no volume: {files:?}"
    );
    assert_eq!(environment.disks(), 400);
}

#[test]
fn of_two_that_want_one_name_one_gets_it() {
    let environment = Environment::new();
    let outcomes: Vec<i32> = thread::scope(|scope| {
        let runs: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| environment.run("volume create 16M --name pgdata").status))
            .collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    assert_eq!(
        outcomes.iter().filter(|status| **status == 0).count(),
        1,
        "{outcomes:?}"
    );
    assert_eq!(
        outcomes.iter().filter(|status| **status == 1).count(),
        3,
        "{outcomes:?}"
    );
    assert_eq!(environment.volumes().len(), 1);
}
