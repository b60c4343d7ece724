use std::collections::BTreeMap;

use sistemo_catalog::CatalogError;
use sistemo_model::Access;

use crate::fixture::Home;

/// The manual page of the schema, as it was when this was built.
const MANUAL: &str = include_str!("../../../../docs/reference/catalogue.md");

fn tables(connection: &rusqlite::Connection) -> BTreeMap<String, Vec<String>> {
    let sql = "SELECT t.name, c.name FROM pragma_table_list t, pragma_table_info(t.name) c
               WHERE t.schema = 'main' AND t.name NOT LIKE 'sqlite%'";
    let mut statement = connection.prepare(sql).unwrap();
    let rows = statement
        .query_map((), |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap();
    let mut tables: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for row in rows {
        let (table, column) = row.unwrap();
        tables.entry(table).or_default().push(column);
    }
    tables
}

#[test]
fn the_manual_describes_every_table_and_column_and_no_other() {
    let home = Home::new();
    let mut described: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut table = None;
    for line in MANUAL.lines() {
        let quoted = line.split('`').nth(1).map(str::to_owned);
        if line.starts_with('#') {
            table = line.starts_with("### `").then_some(quoted).flatten();
        } else if let (Some(table), true) = (&table, line.starts_with("| `")) {
            let columns = described.entry(table.clone()).or_default();
            columns.extend(quoted);
        }
    }
    assert_eq!(described, tables(&home.plain_sql()));
}

#[test]
fn rows_that_break_a_rule_are_refused_by_the_schema_itself() {
    let home = Home::new();
    home.add_volume("pgdata");
    home.add_machine("db1", 2201);
    let sql = home.plain_sql();
    let assignments = [
        ("volumes", "id = 'short'"),
        ("volumes", "id = NULL"),
        ("volumes", "name = ''"),
        ("volumes", "size = 0"),
        ("volumes", "size = -1"),
        ("volumes", "size = 'large'"),
        ("volumes", "role = 'boot'"),
        ("volumes", "pool = ''"),
        ("volumes", "filesystem = 'ntfs'"),
        ("volumes", "kernel = 'short'"),
        ("volumes", "initrd = printf('%064d', 0)"),
        ("volumes", "lifecycle = 'gone'"),
        ("volumes", "history = '[]'"),
        ("volumes", "created = NULL"),
        ("machines", "name = printf('%059d', 0)"),
        ("machines", "vcpus = 0"),
        ("machines", "vcpus = 256"),
        ("machines", "memory = 0"),
        ("machines", "vmm = 'xen'"),
        ("machines", "mac = ''"),
        ("machines", "ssh_port = 0"),
        ("machines", "ssh_port = 65536"),
        ("machines", "autostart = 2"),
        ("machines", "owns_root = NULL"),
        ("machines", "template = 'short'"),
        ("machines", "ephemeral = 2"),
        ("machines", "state = 'flying'"),
        ("machines", "state = 'paused'"),
        ("machines", "state = 'stopping'"),
        ("machines", "paused_why = 'requested'"),
        ("machines", "stopping_how = 'clean'"),
        ("machines", "stopped_how = 'somehow'"),
        ("machines", "state = 'running', stopped_how = 'clean'"),
        ("machines", "state = 'paused', paused_why = 'tired'"),
        ("machines", "vmm_pid = 1"),
        ("machines", "state = 'running', vmm_pid = 1"),
        (
            "machines",
            "vmm_pid = 1, vmm_started = 1, vmm_boot = 'b', accelerator = 'tcg'",
        ),
        ("machines", "accelerator = 'tcg'"),
        ("machines", "lifecycle = 'gone'"),
    ];
    for (table, assignment) in assignments {
        let error = sql
            .execute(&format!("UPDATE {table} SET {assignment}"), ())
            .expect_err(&format!("{table}: {assignment}"));
        let code = error.sqlite_error_code();
        assert_eq!(
            code,
            Some(rusqlite::ErrorCode::ConstraintViolation),
            "{table}: {assignment}: {error}"
        );
    }
    // The same shape of statement succeeds with a legal value.
    let legal = "UPDATE machines SET state = 'running', vmm_pid = 1, vmm_started = 1,
                 vmm_boot = 'b', accelerator = 'tcg'";
    assert_eq!(sql.execute(legal, ()).unwrap(), 1);
    assert!(home.catalogue.check().unwrap().is_empty());
}

#[test]
fn attachments_that_break_a_rule_are_refused_by_the_schema_itself() {
    let home = Home::new();
    let (a, b) = (home.add_volume("a"), home.add_volume("b"));
    let (m, n) = (home.add_machine("m", 2201), home.add_machine("n", 2202));
    home.write(|tx| tx.attach(m, a, 1, Access::ReadWrite));
    let sql = home.plain_sql();
    let attach = |volume: &str, machine: &str, position: i64, read_only: i64| {
        sql.execute(
            "INSERT INTO attachments (volume, machine, position, read_only)
             VALUES (?1, ?2, ?3, ?4)",
            (volume, machine, position, read_only),
        )
    };
    let (a, b, m, n) = (a.to_string(), b.to_string(), m.to_string(), n.to_string());
    assert!(attach(&a, &n, 1, 0).is_err(), "a volume of two machines");
    assert!(attach(&b, &m, 1, 0).is_err(), "two volumes in one place");
    assert!(attach(&b, &n, 26, 0).is_err(), "a place beyond the last");
    assert!(attach(&b, &n, 1, 2).is_err(), "neither true nor false");
    assert!(attach(&b, &b, 1, 0).is_err(), "no such machine");
    assert!(attach(&n, &n, 1, 0).is_err(), "no such volume");
    let delete = sql.execute("DELETE FROM volumes WHERE id = ?1", [&a]);
    assert!(delete.is_err(), "an attached volume goes");
    assert_eq!(attach(&b, &n, 1, 0).unwrap(), 1);
}

#[test]
fn a_damaged_row_is_named_and_found_by_a_check() {
    let home = Home::new();
    let id = home.add_volume("pgdata");
    let sql = home.plain_sql();
    sql.pragma_update(None, "ignore_check_constraints", true)
        .unwrap();
    for (column, damage) in [
        ("role", "'boot'"),
        ("size", "-5"),
        ("name", "'../x'"),
        ("created", "'yesterday'"),
        ("pool", "''"),
    ] {
        let damage = format!("UPDATE volumes SET {column} = {damage}");
        let old = home.read(|s| s.volume(id));
        sql.execute(&damage, ()).unwrap();
        let error = home.catalogue.read(|s| s.volumes()).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("column {column} of row {id} in the catalogue's table volumes is damaged")
        );
        assert!(std::error::Error::source(&error).is_some());
        home.write(|tx| {
            tx.delete_volume(id)?;
            tx.insert_volume(&old)
        });
    }
    assert!(home.catalogue.check().unwrap().is_empty());
    sql.execute("UPDATE volumes SET role = 'boot'", ()).unwrap();
    assert_eq!(home.catalogue.check().unwrap().len(), 1);
}

#[test]
fn a_damaged_machine_is_an_error_and_no_panic() {
    let home = Home::new();
    let id = home.add_machine("db1", 2201);
    let sql = home.plain_sql();
    sql.pragma_update(None, "ignore_check_constraints", true)
        .unwrap();
    for damage in [
        "state = 'paused'",
        "state = 'flying'",
        "vcpus = 256",
        "mac = 'x'",
    ] {
        sql.execute(&format!("UPDATE machines SET {damage}"), ())
            .unwrap();
        let error = home.catalogue.read(|s| s.machine(id)).unwrap_err();
        assert!(
            matches!(
                error,
                CatalogError::DamagedRow {
                    table: "machines",
                    ..
                }
            ),
            "{damage}: {error}"
        );
        sql.execute(
            "UPDATE machines SET state = 'stopped', vcpus = 1, mac = '52:54:00:00:00:00'",
            (),
        )
        .unwrap();
    }
}
