//! `sistemo volume trash …`

use crate::environment::Environment;

#[test]
fn what_is_deleted_comes_back() {
    let environment = Environment::new();
    let scene = environment.scene(&[
        "volume trash list",
        "volume create 16M --name pgdata --fs none",
        "volume delete pgdata -y",
        "volume trash ls",
        "volume trash restore pgdata",
        "volume rm pgdata -y",
        "volume create 32M --name pgdata --fs none",
        "volume trash restore pgdata",
        "volume trash restore pgdata --name pgdata",
        "volume trash restore pgdata --name pgdata-old",
        "volume trash restore pgdata",
        "volume trash restore pgdata -o json",
        "volume rm pgdata pgdata-old -y",
        "volume trash list -o json",
        "volume trash empty",
        "volume trash empty pgdata pgdata",
        "volume trash empty nothing -y",
        "volume trash empty pgdata -P default",
        "volume trash empty -P nowhere -y",
        "volume trash empty pgdata -y",
        "volume trash empty -y",
        "volume trash empty -y -o json",
    ]);
    environment.assert_snapshot("what_is_deleted_comes_back", &scene);
    assert_eq!(environment.volume_files(), [""; 0]);
}

#[test]
fn two_of_one_name_are_told_apart_by_their_ids() {
    let environment = Environment::new();
    let delete = || {
        let line = "volume create 16M --name pgdata --fs none -o json";
        let made = environment.ok(line).json();
        environment.ok("volume delete pgdata -y");
        made["id"].as_str().unwrap().to_owned()
    };
    let (first, second) = (delete(), delete());
    let told = environment.refused(1, "volume trash restore pgdata", &second);
    let expected = format!(
        "Error: volume pgdata is ambiguous: it may be pgdata ({first}), pgdata ({second})\n\
         Hint: name it by its ID\n"
    );
    assert_eq!(told, expected);
    let restored = environment.ok(&format!("volume trash restore {first} -o json"));
    assert_eq!(restored.json()["id"], first);
    // Now that one has the name, what is advised names the other by what tells it apart.
    let (third, told) = delete_one_more(&environment);
    let brings_back = format!("`sistemo volume trash restore {third}` brings it back");
    assert!(told.contains(&brings_back), "{told}");
    environment.refused(
        1,
        &format!("volume trash restore {second}"),
        &format!("Hint: sistemo volume trash restore {second} --name NEW"),
    );
}

/// Gives `pgdata` another name, makes one more of that name and deletes it, and gives it back.
fn delete_one_more(environment: &Environment) -> (String, String) {
    environment.ok("volume rename pgdata aside");
    let made = environment
        .ok("volume create 16M --name pgdata --fs none -o json")
        .json();
    let told = environment.ok("volume delete pgdata -y").stderr;
    environment.ok("volume rename aside pgdata");
    (made["id"].as_str().unwrap().to_owned(), told)
}

#[test]
fn a_machine_says_until_when_its_root_volume_can_be_restored() {
    let environment = Environment::with_machine();
    environment.refused(
        2,
        "machine delete db1 --purge --preserve-storage",
        "cannot be used with",
    );
    let gone = environment.ok("machine delete db1 -y -o json").json();
    let trash = environment.ok("volume trash list -o json").json();
    assert_eq!(gone[0]["name"], "db1");
    assert_eq!(gone[0]["restorable_until"], trash[0]["restorable_until"]);
    assert_eq!(trash[0]["name"], "db1-root");
}
