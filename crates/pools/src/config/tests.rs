use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;

use super::*;

/// As Qubes OS R3.2 installed it.
const QUBES: &str = "\
[default] ; poolname
driver=xen ; the default xen storage
; class = qubes.storage.xen.XenStorage ; class always overwrites the driver
; 
; To use our own storage adapter, you need just to specify the module path and
; class name
; [pool-b]
; class = foo.bar.MyStorage
;
; [test-dummy]
; driver=dummy

";

fn surroundings(data_dir: &Path) -> Surroundings {
    Surroundings {
        named: None,
        data_dir: data_dir.to_owned(),
        system: data_dir.join("etc/storage.conf"),
        home: Some("/home/user".into()),
    }
}

fn try_understand(text: impl AsRef<[u8]>) -> Result<StorageConf, ConfError> {
    StorageConf::understand(
        text.as_ref().to_vec(),
        Some("/etc/storage.conf".into()),
        surroundings(Path::new("/data")),
        &Registry::built_in(),
    )
}

fn understand(text: impl AsRef<[u8]>) -> StorageConf {
    try_understand(text).unwrap()
}

fn name(text: &str) -> PoolName {
    text.parse().unwrap()
}

fn text_of(conf: &StorageConf) -> &str {
    std::str::from_utf8(&conf.document.text).unwrap()
}

/// The directories of the pools that are usable.
fn directories(conf: &StorageConf) -> Vec<(&str, &str)> {
    let usable = conf.pools().iter().filter_map(|pool| {
        let directory = pool.config.as_ref().ok()?.directory.as_deref()?;
        Some((pool.title.as_str(), directory.to_str()?))
    });
    usable.collect()
}

/// What is wrong with the pool of that title.
fn fault(conf: &StorageConf, title: &str) -> String {
    let pool = conf.pools().iter().find(|pool| pool.title == title);
    let fault = pool.unwrap().config.clone().unwrap_err();
    std::iter::successors(Some(&fault as &dyn std::error::Error), |e| e.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

/// A text with the names of the drivers in it.
fn with_drivers(text: &str) -> String {
    let drivers = Registry::built_in().drivers().into_iter();
    let names: Vec<_> = drivers.map(|info| info.name).collect();
    text.replace("DRIVERS", &names.join(", "))
}

#[test]
fn without_a_file_there_is_the_default_pool() {
    let conf = understand("");
    assert_eq!(directories(&conf), [("default", "/data/volumes")]);
    assert_eq!(conf.pools()[0].line, None);
}

#[test]
fn the_file_of_qubes_loads_unchanged() {
    let conf = understand(QUBES);
    assert_eq!(directories(&conf), [("default", "/data/volumes")]);
    let config = conf.pools()[0].config.as_ref().unwrap();
    assert_eq!(config.driver, "file");
    assert_eq!(conf.pools()[0].line, Some(1));
}

#[test]
fn the_pool_of_the_qubes_document_loads() {
    let conf = understand(format!(
        "{QUBES}[foo]\ndriver=xen\ndir_path=/opt/qubes-vm\n"
    ));
    let pools = [("default", "/data/volumes"), ("foo", "/opt/qubes-vm")];
    assert_eq!(directories(&conf), pools);
    assert_eq!(conf.pool(&name("foo")).unwrap().line, Some(13));
}

#[test]
fn the_specified_example_loads() {
    let conf = understand(
        "\
[DEFAULT]                 # optional: what every pool starts from

[default]                 ; always exists, also without a file; any option may be left out
driver = file
dir_path = ~/.sistemo/volumes

[foo]
driver = xen              # the name that file had there
dir_path = /opt/qubes-vm

[mine]
class = /opt/drivers/mybtrfs      # an executable, or qubes.storage.xen.XenStorage
dir_path = /srv/vm
",
    );
    let pools = [
        ("default", "/home/user/.sistemo/volumes"),
        ("foo", "/opt/qubes-vm"),
    ];
    assert_eq!(directories(&conf), pools);
    assert_eq!(
        fault(&conf, "mine"),
        "/etc/storage.conf:12: [mine] class: there is no driver of class `/opt/drivers/mybtrfs`"
    );
}

#[test]
fn a_class_wins_over_a_driver() {
    let conf = understand(
        "[a]\ndriver = no such\nclass = qubes.storage.xen.XenStorage\ndir_path = /a\n\
         [b]\ndriver = file\nclass = foo.bar.MyStorage\ndir_path = /b\n",
    );
    assert_eq!(
        directories(&conf),
        [("default", "/data/volumes"), ("a", "/a")]
    );
    assert!(fault(&conf, "b").contains(":7: [b] class: "), "{conf:?}");
}

#[test]
fn every_pool_starts_from_the_defaults() {
    let conf = understand("[DEFAULT]\ndriver = file\n[a]\ndir_path = /a\n[b]\ndir_path: /b\n");
    let pools = [("default", "/data/volumes"), ("a", "/a"), ("b", "/b")];
    assert_eq!(directories(&conf), pools);
    let conf = understand("[a]\ndriver = file\n[DEFAULT]\ndir_path = /everywhere\n");
    let pools = [("default", "/everywhere"), ("a", "/everywhere")];
    assert_eq!(directories(&conf), pools);
}

#[test]
fn a_mistake_in_the_defaults_concerns_every_pool() {
    for (line, wrong) in [
        (
            "driver = file\ncolour = red",
            "3: [DEFAULT] colour: no driver has such an option",
        ),
        ("driver", "2: [DEFAULT] the line is not `key = value`"),
        (
            "driver = zfs",
            "2: [DEFAULT] driver: there is no driver `zfs`; the drivers are DRIVERS",
        ),
    ] {
        let conf = understand(format!("[DEFAULT]\n{line}\n[a]\ndir_path = /a\n"));
        for pool in ["default", "a"] {
            assert_eq!(
                fault(&conf, pool),
                format!("/etc/storage.conf:{}", with_drivers(wrong)),
                "{pool}"
            );
        }
    }
}

#[test]
fn comments_begin_a_line_or_follow_white_space() {
    let conf = understand(
        "# one\n  ; two\n[a]# three\n\
         driver=file\t;four # five\n\
         dir_path = /srv/a#b;c  # six\n",
    );
    assert_eq!(directories(&conf)[1], ("a", "/srv/a#b;c"));
}

#[test]
fn line_ends_a_byte_order_mark_and_the_case_of_keys_do_no_harm() {
    let plain = "[a]\nDriver = file\nDIR_PATH = /a\n";
    for text in [
        plain.replace('\n', "\r\n"),
        format!("\u{feff}{plain}"),
        format!("\u{feff}{}", plain.replace('\n', "\r\n")),
        plain.trim_end().to_owned(),
        plain.replace("= ", "=   ").replace('\n', "   \n"),
    ] {
        assert_eq!(directories(&understand(&text))[1], ("a", "/a"), "{text:?}");
    }
}

#[test]
fn a_mistake_names_its_place_and_harms_no_other_pool() {
    for (section, title, wrong) in [
        (
            "[a]\ndriver = zfs\ndir_path = /a",
            "a",
            "11: [a] driver: there is no driver `zfs`; the drivers are DRIVERS",
        ),
        (
            "[a]\ndriver = file",
            "a",
            "10: [a] dir_path: driver file needs the option",
        ),
        (
            "[a]\ndir_path = /a",
            "a",
            "10: [a] driver: it names no driver",
        ),
        (
            "[a]\ndriver = file\ndir_path = vm",
            "a",
            "12: [a] dir_path: `vm` is not an absolute path",
        ),
        (
            "[a]\ndriver = file\ndir_path =",
            "a",
            "12: [a] dir_path: `` is not an absolute path",
        ),
        (
            "[a]\ndriver = file\ndir_path = ~root/vm",
            "a",
            "12: [a] dir_path: `~root/vm` is not an absolute path",
        ),
        (
            "[a]\ndriver = file\ndir_path = /a\nsize = 5G",
            "a",
            "13: [a] size: driver file has no such option; its options are dir_path, \
             revisions_to_keep, trash_keep",
        ),
        (
            "[a]\ndriver = file\ndriver = xen",
            "a",
            "12: [a] driver: the option is there twice",
        ),
        (
            "[a]\ndriver = file\ndir_path /a",
            "a",
            "12: [a] the line is not `key = value`",
        ),
        ("[a]\n= file", "a", "11: [a] the line is not `key = value`"),
        (
            "[a\ndriver = file",
            "a",
            "10: [a] the section's name does not end with `]`",
        ),
        (
            "[a] b\ndriver = file",
            "a",
            "10: [a] only a comment may stand behind the section's name",
        ),
        (
            "[a/b]\ndriver = file",
            "a/b",
            "10: [a/b] no pool can have this name: pool name `a/b` contains `/`; names are made of a-z A-Z 0-9 . _ - and start with a letter or digit",
        ),
        (
            "[]",
            "",
            "10: [] no pool can have this name: a pool name cannot be empty",
        ),
    ] {
        let first = "[default]\ndir_path = /default\n\n[first]\ndriver = file\ndir_path = /first\n";
        let conf = understand(format!(
            "{first}\n\n\n{section}\n[last]\ndriver = file\ndir_path = /last\n"
        ));
        let pools = [
            ("default", "/default"),
            ("first", "/first"),
            ("last", "/last"),
        ];
        assert_eq!(directories(&conf), pools, "{section}");
        let wrong = with_drivers(wrong);
        assert_eq!(fault(&conf, title), format!("/etc/storage.conf:{wrong}"));
    }
}

/// The value that a driver is given of a pool's option.
fn option(conf: &StorageConf, title: &str, key: &str) -> Option<String> {
    let pool = conf.pools().iter().find(|pool| pool.title == title);
    let config = pool.unwrap().config.as_ref().unwrap();
    config.options.get(key).cloned()
}

#[test]
fn yes_and_no_have_the_words_of_qubes_in_any_case() {
    for (words, meant) in [
        (["true", "yes", "on", "1", "True", "YES", "oN"], "true"),
        (["false", "no", "off", "0", "False", "NO", "oFF"], "false"),
    ] {
        for word in words {
            let conf = understand(format!(
                "[a]\ndriver = file-reflink\ndir_path = /a\nsetup_check = {word} # why\n"
            ));
            assert_eq!(option(&conf, "a", "setup_check").unwrap(), meant, "{word}");
        }
    }
    let conf = understand("[a]\ndriver = file-reflink\ndir_path = /a\n");
    assert_eq!(option(&conf, "a", "setup_check").unwrap(), "true");
}

#[test]
fn a_size_is_written_as_on_the_command_line_and_given_in_bytes() {
    for (text, bytes) in [
        ("20G", "21474836480"),
        ("20GiB", "21474836480"),
        ("1.5g", "1610612736"),
        ("512", "536870912"),
    ] {
        let conf = understand(format!(
            "[a]\ndriver = file-reflink\ndir_path = /a\nsize = {text} ; thin\n"
        ));
        assert_eq!(option(&conf, "a", "size").unwrap(), bytes, "{text}");
    }
    let conf = understand("[a]\ndriver = file-reflink\ndir_path = /a\n");
    assert_eq!(option(&conf, "a", "size"), None);
}

#[test]
fn what_is_neither_yes_nor_no_or_no_size_is_a_mistake_of_its_line() {
    for (line, wrong) in [
        (
            "setup_check = maybe",
            "setup_check: `maybe` is neither `true` nor `false`",
        ),
        (
            "setup_check =",
            "setup_check: `` is neither `true` nor `false`",
        ),
        (
            "setup_check = 2",
            "setup_check: `2` is neither `true` nor `false`",
        ),
        ("size = big", "size: it is not a size: `big` is not a size"),
        ("size =", "size: it is not a size: `` is not a size"),
        ("size = 0", "size: it is not a size: size `0` is zero"),
        (
            "size = -1G",
            "size: it is not a size: size `-1G` is negative",
        ),
        (
            "size = 1000B",
            "size: it is not a size: size `1000B` is not a multiple of 512 bytes",
        ),
        (
            "size = 8388608T",
            "size: it is not a size: size `8388608T` is larger than any file can be",
        ),
    ] {
        let conf = understand(format!(
            "[a]\ndriver = file-reflink\ndir_path = /a\n{line}\n[b]\ndriver = file\ndir_path = /b\n"
        ));
        assert_eq!(
            fault(&conf, "a"),
            format!("/etc/storage.conf:4: [a] {wrong}")
        );
        assert_eq!(directories(&conf)[1], ("b", "/b"), "{line}");
    }
}

#[test]
fn what_is_kept_is_said_for_any_driver_and_given_to_none() {
    let conf = understand(
        "\
[DEFAULT]
revisions_to_keep = 2

[default]
trash_keep = 90m          ; not for long

[plain]
driver = qcow2
dir_path = /plain

[own]
driver = btrfs
dir_path = /own
revisions_to_keep = 0
trash_keep = 0
",
    );
    let kept = |title: &str| {
        let config = conf.pool(&name(title)).unwrap().config.as_ref().unwrap();
        for option in Keeping::options() {
            assert_eq!(config.options.get(&option.name), None, "{title}");
        }
        let Keeping { revisions, trash } = config.keeping;
        (revisions, trash.to_string())
    };
    assert_eq!(kept("default"), (2, "90m".to_owned()));
    assert_eq!(kept("plain"), (2, "24h".to_owned()));
    assert_eq!(kept("own"), (0, "0".to_owned()));
    let usual = understand("").pools()[0].config.clone().unwrap().keeping;
    assert_eq!(usual, Keeping::default());
}

#[test]
fn what_says_nothing_of_what_is_kept_is_a_mistake_of_its_line() {
    let number = "is not a whole number from 0 to 4294967295";
    let period = "it is not a length of time: ";
    for (key, value, wrong) in [
        ("revisions_to_keep", "-1", format!("`-1` {number}")),
        ("revisions_to_keep", "+1", format!("`+1` {number}")),
        ("revisions_to_keep", "many", format!("`many` {number}")),
        ("revisions_to_keep", "", format!("`` {number}")),
        (
            "revisions_to_keep",
            "4294967296",
            format!("`4294967296` {number}"),
        ),
        (
            "trash_keep",
            "24",
            format!("{period}`24` has no unit: s, m, h, d or w"),
        ),
        (
            "trash_keep",
            "-1h",
            format!("{period}`-1h` is no length of time such as `90m`, `24h`, `7d` or `0`"),
        ),
        (
            "trash_keep",
            "101w1d",
            format!("{period}`101w1d` is no length of time such as `90m`, `24h`, `7d` or `0`"),
        ),
        (
            "trash_keep",
            "99999d",
            format!("{period}`99999d` is more than 100 years"),
        ),
    ] {
        let conf = understand(format!(
            "[a]\ndriver = file\ndir_path = /a\n{key} = {value}\n[b]\ndriver = file\ndir_path = /b\n"
        ));
        let expected = format!("/etc/storage.conf:4: [a] {key}: {wrong}");
        assert_eq!(fault(&conf, "a"), expected);
        assert!(conf.pool(&name("b")).unwrap().config.is_ok());
        let conf = understand(format!("[DEFAULT]\n{key} = {value}\n"));
        let expected = format!("/etc/storage.conf:2: [DEFAULT] {key}: {wrong}");
        assert_eq!(fault(&conf, "default"), expected);
    }
}

#[test]
fn a_pool_that_is_there_twice_is_none() {
    let conf = understand(
        "[a]\ndriver = file\ndir_path = /one\n[b]\ndriver = file\ndir_path = /b\n\
         [a]\ndriver = file\ndir_path = /two\n",
    );
    let pools = [("default", "/data/volumes"), ("b", "/b")];
    assert_eq!(directories(&conf), pools);
    assert_eq!(
        fault(&conf, "a"),
        "/etc/storage.conf:1: [a] the section is there twice, also in line 7"
    );
}

#[test]
fn what_is_not_utf_8_is_named_by_its_line() {
    let conf = understand(b"[a]\ndriver = file\n# gr\xf6\xdfer\ndir_path = /a\n");
    assert_eq!(directories(&conf).len(), 1);
    assert_eq!(
        fault(&conf, "a"),
        "/etc/storage.conf:3: [a] the line is not UTF-8"
    );
    let conf = understand(b"[a]\ndriver=file\ndir_path=/a\n[\xff]\ndriver = file\n");
    assert_eq!(directories(&conf)[1], ("a", "/a"));
    assert_eq!(
        fault(&conf, "\u{fffd}"),
        "/etc/storage.conf:4: [\u{fffd}] the line is not UTF-8"
    );
}

#[test]
fn what_belongs_to_no_section_concerns_them_all() {
    for (text, wrong) in [
        (
            "driver = file\n[a]\n",
            "1: the line stands before the first section",
        ),
        (
            "# c\n\ndefault]\n",
            "3: the line stands before the first section",
        ),
    ] {
        let ConfError::Fault(fault) = try_understand(text).unwrap_err() else {
            panic!("{text}");
        };
        assert_eq!(fault.to_string(), format!("/etc/storage.conf:{wrong}"));
    }
    let utf_16 = b"\xff\xfe[\x00a\x00]\x00\n\x00";
    let error = try_understand(utf_16).unwrap_err();
    assert!(matches!(
        error,
        ConfError::Fault(Fault {
            problem: Problem::NotUtf8,
            ..
        })
    ));
}

#[test]
fn a_home_directory_that_nobody_knows_is_told() {
    let text = b"[a]\ndriver = file\ndir_path = ~/vm\n".to_vec();
    let homeless = Surroundings {
        home: None,
        ..surroundings(Path::new("/data"))
    };
    let conf = StorageConf::understand(text, None, homeless, &Registry::built_in()).unwrap();
    assert_eq!(
        fault(&conf, "a"),
        "[a] dir_path: `~/vm` needs a home directory, and HOME is not set"
    );
}

#[test]
fn the_named_file_comes_first_then_the_data_directorys_then_the_hosts() {
    let home = tempfile::tempdir().unwrap();
    let directory = Directory::open(home.path()).unwrap();
    let registry = Registry::built_in();
    std::fs::create_dir(home.path().join("etc")).unwrap();
    let pool = |path: &str| format!("[{path}]\ndriver = file\ndir_path = /{path}\n");
    let mut surroundings = surroundings(home.path());
    let found = |surroundings: &Surroundings| {
        let conf = StorageConf::load(surroundings, &registry).unwrap();
        conf.pools().last().unwrap().title.clone()
    };
    assert_eq!(surroundings.file(), None);
    assert_eq!(found(&surroundings), "default");
    let etc = Directory::open(&home.path().join("etc")).unwrap();
    etc.replace(FILE_NAME, pool("system").as_bytes()).unwrap();
    assert_eq!(found(&surroundings), "system");
    directory
        .replace(FILE_NAME, pool("own").as_bytes())
        .unwrap();
    assert_eq!(found(&surroundings), "own");
    directory
        .replace("named", pool("named").as_bytes())
        .unwrap();
    surroundings.named = Some(home.path().join("named"));
    assert_eq!(found(&surroundings), "named");

    surroundings.named = Some(home.path().join("missing"));
    let error = StorageConf::load(&surroundings, &registry).unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
}

#[test]
fn what_is_no_file_of_people_is_not_read() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join(FILE_NAME);
    let load = || StorageConf::load(&surroundings(home.path()), &Registry::built_in());
    let why = |error: ConfError| {
        std::error::Error::source(&error)
            .unwrap()
            .source()
            .unwrap()
            .to_string()
    };

    std::fs::File::create(&file)
        .unwrap()
        .set_len(10 << 20)
        .unwrap();
    assert_eq!(
        why(load().unwrap_err()),
        "the file is larger than 1048576 bytes"
    );
    std::fs::remove_file(&file).unwrap();

    let mode = rustix::fs::Mode::RUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &file, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    assert_eq!(why(load().unwrap_err()), "it is not a regular file");
    std::fs::remove_file(&file).unwrap();

    std::fs::create_dir(&file).unwrap();
    assert_eq!(why(load().unwrap_err()), "it is not a regular file");
}

fn options(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = pairs
        .iter()
        .map(|(key, value)| ((*key).into(), (*value).into()));
    owned.collect()
}

#[test]
fn an_added_pool_comes_last_and_the_rest_stays_as_it_is() {
    let registry = Registry::built_in();
    for (before, expected) in [
        ("", "[foo]\ndriver = xen\ndir_path = /a\n"),
        ("# c", "# c\n\n[foo]\ndriver = xen\ndir_path = /a\n"),
        (
            "[b] ; x\r\ndriver=xen\r\n",
            "[b] ; x\r\ndriver=xen\r\n\r\n[foo]\r\ndriver = xen\r\ndir_path = /a\r\n",
        ),
    ] {
        let added = understand(before)
            .with_pool(
                &name("foo"),
                "xen",
                &options(&[("dir_path", "/a")]),
                &registry,
            )
            .unwrap();
        assert_eq!(text_of(&added), expected);
        assert!(added.pool(&name("foo")).unwrap().config.is_ok());
    }
}

#[test]
fn a_changed_option_keeps_its_comment_and_its_place() {
    let registry = Registry::built_in();
    let text = "# top\n[foo] ; of Qubes\n  dir_path=/a   # old\r\ndriver: xen\n\n# of bar\n[bar]\ndriver=file\ndir_path=;none\n";
    let changed = understand(text)
        .with_options(&name("foo"), &options(&[("dir_path", "/b c")]), &registry)
        .unwrap();
    assert_eq!(text_of(&changed), text.replace("/a", "/b c"));
    let changed = understand(text)
        .with_options(&name("bar"), &options(&[("dir_path", "/b")]), &registry)
        .unwrap();
    assert_eq!(
        text_of(&changed),
        text.replace("dir_path=;none", "dir_path=/b ;none")
    );
    let changed = understand(text)
        .with_options(&name("foo"), &options(&[("new", "1")]), &registry)
        .unwrap();
    assert_eq!(
        text_of(&changed),
        text.replace("driver: xen\n", "driver: xen\nnew = 1\n")
    );
    let changed = understand("[foo]")
        .with_options(&name("foo"), &options(&[("new", "1")]), &registry)
        .unwrap();
    assert_eq!(text_of(&changed), "[foo]\nnew = 1\n");
    let changed = understand("# c\n")
        .with_options(&name("default"), &options(&[("dir_path", "/d")]), &registry)
        .unwrap();
    assert_eq!(text_of(&changed), "# c\n\n[default]\ndir_path = /d\n");
}

#[test]
fn a_removed_pool_leaves_the_comments_around_it() {
    let registry = Registry::built_in();
    let text = "# top\n[a]\ndriver=file ; a\n# within a\ndir_path=/a\n\n# of foo\n[foo]\ndriver=xen\n\n# of b\n[b]\ndriver=file\n";
    let removed = understand(text)
        .without_pool(&name("foo"), &registry)
        .unwrap();
    assert_eq!(
        text_of(&removed),
        "# top\n[a]\ndriver=file ; a\n# within a\ndir_path=/a\n\n# of foo\n\n# of b\n[b]\ndriver=file\n"
    );
    let removed = removed.without_pool(&name("b"), &registry).unwrap();
    let removed = removed.without_pool(&name("a"), &registry).unwrap();
    assert_eq!(text_of(&removed), "# top\n\n# of foo\n\n# of b\n");
    let twice = understand("[a]\n[b]\n[a]\n")
        .without_pool(&name("a"), &registry)
        .unwrap();
    assert_eq!(text_of(&twice), "[b]\n");
}

#[test]
fn what_would_be_read_back_as_something_else_is_not_written() {
    let registry = Registry::built_in();
    let conf = understand("[foo]\ndriver = file\ndir_path = /a\n");
    for (key, value) in [
        ("dir_path", "/a #b"),
        ("dir_path", "#b"),
        ("dir_path", "/a\n[evil]\ndriver = file"),
        ("dir_path", "/a\ndriver = x"),
        ("dir_path", " /a"),
        ("dir_path", "/a\r"),
        ("a=b", "c"),
        ("[x]", "c"),
        ("", "c"),
        ("#", "c"),
    ] {
        let pair = options(&[(key, value)]);
        for changed in [
            conf.with_options(&name("foo"), &pair, &registry),
            conf.with_pool(&name("bar"), "file", &pair, &registry),
        ] {
            let error = changed.unwrap_err();
            assert!(
                matches!(
                    &error,
                    ConfError::Fault(Fault {
                        problem: Problem::Unwritable { .. },
                        ..
                    })
                ),
                "{key}={value:?}: {error:?}"
            );
        }
    }
}

#[test]
fn a_written_file_keeps_its_mode_and_the_link_that_leads_to_it() {
    let home = tempfile::tempdir().unwrap();
    let registry = Registry::built_in();
    let real = home.path().join("real.conf");
    Directory::open(home.path())
        .unwrap()
        .replace("real.conf", b"# mine\n")
        .unwrap();
    std::fs::set_permissions(&real, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::os::unix::fs::symlink("real.conf", home.path().join(FILE_NAME)).unwrap();
    let conf = StorageConf::load(&surroundings(home.path()), &registry).unwrap();
    let added = conf
        .with_pool(
            &name("foo"),
            "file",
            &options(&[("dir_path", "/a")]),
            &registry,
        )
        .unwrap();
    conf.check_writable().unwrap();
    conf.replace_by(&added).unwrap();
    let written = std::fs::read_to_string(&real).unwrap();
    assert_eq!(written, "# mine\n\n[foo]\ndriver = file\ndir_path = /a\n");
    assert_eq!(
        std::fs::metadata(&real).unwrap().permissions().mode() & 0o777,
        0o644
    );
    assert!(home.path().join(FILE_NAME).is_symlink());

    let error = conf.replace_by(&added).unwrap_err();
    assert!(matches!(error, ConfError::Changed { .. }), "{error}");
}

#[test]
fn the_first_file_is_the_data_directorys() {
    let home = tempfile::tempdir().unwrap();
    let registry = Registry::built_in();
    let conf = StorageConf::load(&surroundings(home.path()), &registry).unwrap();
    assert_eq!(conf.file_to_change(), home.path().join(FILE_NAME));
    let added = conf
        .with_pool(&name("foo"), "file", &[], &registry)
        .unwrap();
    conf.replace_by(&added).unwrap();
    let written = std::fs::read_to_string(home.path().join(FILE_NAME)).unwrap();
    assert_eq!(written, "[foo]\ndriver = file\n");
}

/// Lines as people write them, right and wrong.
fn file() -> impl Strategy<Value = String> {
    let line = prop_oneof![
        Just(String::new()),
        Just("# comment".to_owned()),
        Just("; comment".to_owned()),
        Just("nonsense".to_owned()),
        "\\[(DEFAULT|default|a|b|foo|a/b)\\] ?(; c)?",
        "(driver|class|dir_path|Size) ?[=:] ?(file|xen|/srv/[a-c]|~/x|)( [#;] c)?",
    ];
    let end = prop_oneof![Just("\n"), Just("\r\n")];
    let lines = prop::collection::vec(line, 0..20);
    (lines, end, any::<bool>(), any::<bool>()).prop_map(|(lines, end, mark, closed)| {
        let mark = if mark { "\u{feff}" } else { "" };
        let closed = if closed && !lines.is_empty() { end } else { "" };
        format!("{mark}{}{closed}", lines.join(end))
    })
}

/// Everything that was understood of a file, but for the pool `foo`.
fn others(conf: &StorageConf) -> Vec<(String, Option<PoolConfig>)> {
    let others = conf.pools().iter().filter(|pool| pool.title != "foo");
    let known = others.map(|pool| (pool.title.clone(), pool.config.clone().ok()));
    known.collect()
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = try_understand(bytes);
    }

    #[test]
    fn any_text_is_edited_without_panic(text in "[\\[\\]=:#; \r\nafo\u{feff}é]{0,60}", value in ".{0,9}") {
        let registry = Registry::built_in();
        let pair = [("dir_path".to_owned(), value)];
        if let Ok(conf) = try_understand(text) {
            let _ = conf.with_pool(&name("foo"), "file", &pair, &registry);
            let _ = conf.with_options(&name("a"), &pair, &registry);
            let _ = conf.without_pool(&name("a"), &registry);
        }
    }

    #[test]
    fn an_edit_does_what_it_should_and_nothing_else(text in file()) {
        let registry = Registry::built_in();
        let Ok(conf) = try_understand(&text) else { return Ok(()); };
        let foo = name("foo");
        let directory = |conf: &StorageConf| {
            let config = conf.pool(&foo).and_then(|pool| pool.config.clone().ok());
            config.and_then(|config| config.directory)
        };
        let without = conf.without_pool(&foo, &registry).unwrap();
        prop_assert!(without.pool(&foo).is_none());
        prop_assert_eq!(others(&without), others(&conf));
        let pair = options(&[("dir_path", "/srv/foo")]);
        let added = without.with_pool(&foo, "file", &pair, &registry).unwrap();
        prop_assert_eq!(others(&added), others(&without));
        prop_assert!(text_of(&added).starts_with(text_of(&without)));
        let usable = added.pool(&foo).unwrap().config.is_ok();
        prop_assert_eq!(directory(&added).is_some(), usable);
        let moved = options(&[("dir_path", "/srv/moved")]);
        let changed = added.with_options(&foo, &moved, &registry).unwrap();
        prop_assert_eq!(directory(&changed), usable.then(|| PathBuf::from("/srv/moved")));
        prop_assert_eq!(others(&changed), others(&added));
        let back = added.without_pool(&foo, &registry).unwrap();
        let closed = text_of(&without).is_empty() || text_of(&without).ends_with('\n');
        prop_assert_eq!(text_of(&back) == text_of(&without), closed || text_of(&without) == "\u{feff}");
    }
}
