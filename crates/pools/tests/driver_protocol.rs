//! The messages that `docs/reference/driver-protocol.md` shows are what the code says and reads,
//! and what the JSON Schema beside it allows.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use sistemo_pools::external::protocol::{
    Capabilities, ChangedAnswer, Done, ErrorAnswer, ErrorCode, InspectAnswer, ListAnswer,
    LocationAnswer, PoolAnswer, Request, SharingAnswer, SnapshotsAnswer, UsageAnswer, WayAnswer,
};

const PAGE: &str = include_str!("../../../docs/reference/driver-protocol.md");
const SCHEMA: &str = include_str!("../../../docs/reference/driver-protocol.schema.json");

#[derive(Debug)]
struct Message {
    /// `request`, `answer` or `error`.
    kind: String,
    /// The operation under whose heading it stands.
    operation: String,
    value: Value,
}

fn messages() -> Vec<Message> {
    let (mut messages, mut operation) = (Vec::new(), String::new());
    let mut lines = PAGE.lines();
    while let Some(line) = lines.next() {
        if let Some(title) = line.strip_prefix("### ") {
            title.clone_into(&mut operation);
        }
        let Some(kind) = line.strip_prefix("```json ") else {
            continue;
        };
        let text: Vec<_> = lines.by_ref().take_while(|line| *line != "```").collect();
        messages.push(Message {
            kind: kind.to_owned(),
            operation: operation.clone(),
            value: serde_json::from_str(&text.join("\n")).unwrap(),
        });
    }
    messages
}

/// The words of all operations, as the code itself tells them.
fn operations() -> BTreeSet<String> {
    let unknown = json!({"protocol": 1, "operation": "no such"});
    let error = serde_json::from_value::<Request>(unknown).unwrap_err();
    let told = error.to_string();
    let (_, known) = told.split_once("expected one of ").unwrap();
    let words = known.split(", ").map(|word| word.trim_matches('`'));
    words.map(str::to_owned).collect()
}

fn read<T: DeserializeOwned + Serialize>(value: &Value) -> Result<Value, String> {
    let read: T = serde_json::from_value(value.clone()).map_err(|error| error.to_string())?;
    serde_json::to_value(read).map_err(|error| error.to_string())
}

/// Reads an answer as the code does, and writes it again.
fn read_answer(operation: &str, value: &Value) -> Result<Value, String> {
    match operation {
        "capabilities" => read::<Capabilities>(value),
        "setup" | "probe" => read::<PoolAnswer>(value),
        "usage" => read::<UsageAnswer>(value),
        "list" => read::<ListAnswer>(value),
        "inspect" => read::<InspectAnswer>(value),
        "create" | "open" | "open-snapshot" => read::<LocationAnswer>(value),
        "remove" | "delete-snapshot" => read::<ChangedAnswer>(value),
        "grow" | "close" | "describe" => read::<Done>(value),
        "clone" | "snapshot" | "revert" => read::<WayAnswer>(value),
        "snapshots" => read::<SnapshotsAnswer>(value),
        "sharing" => read::<SharingAnswer>(value),
        other => panic!("what is the answer to {other}?"),
    }
}

fn read_message(message: &Message) -> Result<Value, String> {
    match message.kind.as_str() {
        "request" => read::<Request>(&message.value),
        "answer" => read_answer(&message.operation, &message.value),
        "error" => read::<ErrorAnswer>(&message.value),
        other => panic!("what is a message of kind {other}?"),
    }
}

/// As much of JSON Schema as the schema of the protocol is made of.
struct Schema(Value);

impl Schema {
    fn parse() -> Schema {
        Schema(serde_json::from_str(SCHEMA).unwrap())
    }

    fn definition(&self, name: &str) -> &Value {
        let definition = &self.0["$defs"][name];
        assert!(definition.is_object(), "the schema has no {name}");
        definition
    }

    fn of(&self, message: &Message) -> &Value {
        match message.kind.as_str() {
            "error" => self.definition("error"),
            kind => self.definition(&format!("{}-{kind}", message.operation)),
        }
    }

    fn allows(&self, schema: &Value, value: &Value) -> bool {
        schema
            .as_object()
            .unwrap()
            .iter()
            .all(|(word, rule)| match word.as_str() {
                "$ref" => {
                    let name = rule.as_str().unwrap().strip_prefix("#/$defs/").unwrap();
                    self.allows(self.definition(name), value)
                }
                "oneOf" => {
                    let choices = rule.as_array().unwrap().iter();
                    choices.filter(|choice| self.allows(choice, value)).count() == 1
                }
                "type" => match rule.as_str().unwrap() {
                    "object" => value.is_object(),
                    "array" => value.is_array(),
                    "string" => value.is_string(),
                    "boolean" => value.is_boolean(),
                    "integer" => value.is_u64(),
                    "null" => value.is_null(),
                    other => panic!("what is a {other}?"),
                },
                "const" => value == rule,
                "enum" => rule.as_array().unwrap().contains(value),
                "minimum" => value.as_u64() >= rule.as_u64(),
                "multipleOf" => value
                    .as_u64()
                    .is_some_and(|n| n % rule.as_u64().unwrap() == 0),
                "items" => value
                    .as_array()
                    .is_none_or(|items| items.iter().all(|item| self.allows(rule, item))),
                "required" => value.as_object().is_none_or(|fields| {
                    let mut names = rule.as_array().unwrap().iter();
                    names.all(|name| fields.contains_key(name.as_str().unwrap()))
                }),
                "properties" => value.as_object().is_none_or(|fields| {
                    let rules = rule.as_object().unwrap().iter();
                    let mut there =
                        rules.filter_map(|(name, rule)| Some((rule, fields.get(name)?)));
                    there.all(|(rule, field)| self.allows(rule, field))
                }),
                "additionalProperties" => value.as_object().is_none_or(|fields| {
                    let known = schema["properties"].as_object();
                    let is_known =
                        |name: &String| known.is_some_and(|known| known.contains_key(name));
                    let mut others = fields.iter().filter(|(name, _)| !is_known(name));
                    match rule {
                        Value::Bool(allowed) => *allowed || others.next().is_none(),
                        rule => others.all(|(_, field)| self.allows(rule, field)),
                    }
                }),
                "pattern" if rule == "^/" => {
                    value.as_str().is_none_or(|path| path.starts_with('/'))
                }
                // Names and identifiers, which their own types check.
                "pattern" | "format" | "description" => true,
                other => panic!("what does {other} mean?"),
            })
    }
}

/// Every value that a message becomes where a field of it, at whatever depth, is taken out, or
/// one that is not known put in, with what was done. A description is the driver's to keep, and
/// options are the pool's.
fn variations(value: &Value) -> Vec<(String, Value)> {
    let mut all = Vec::new();
    match value {
        Value::Object(fields) => {
            let mut more = fields.clone();
            more.insert("surplus".to_owned(), json!(1));
            all.push(("a surplus field".to_owned(), Value::Object(more)));
            for (name, field) in fields {
                let mut less = fields.clone();
                less.remove(name);
                all.push((format!("no {name}"), Value::Object(less)));
                if ["description", "options"].contains(&name.as_str()) && field.is_object() {
                    continue;
                }
                for (what, varied) in variations(field) {
                    let mut other = fields.clone();
                    other.insert(name.clone(), varied);
                    all.push((format!("{name}: {what}"), Value::Object(other)));
                }
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                for (what, varied) in variations(item) {
                    let mut other = items.clone();
                    other[index] = varied;
                    all.push((format!("{index}: {what}"), Value::Array(other)));
                }
            }
        }
        _ => {}
    }
    all
}

#[test]
fn every_operation_is_shown_with_its_request_and_its_answer() {
    let mut shown: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for message in messages() {
        if message.kind != "error" {
            shown
                .entry(message.operation)
                .or_default()
                .insert(message.kind);
        }
    }
    let both: BTreeSet<_> = ["answer", "request"].map(str::to_owned).into();
    for operation in operations() {
        assert_eq!(shown.remove(&operation), Some(both.clone()), "{operation}");
    }
    assert!(shown.is_empty(), "{shown:?}");
}

#[test]
fn a_shown_message_is_read_and_written_as_it_stands() {
    for message in messages() {
        let written = read_message(&message).unwrap_or_else(|error| panic!("{error}: {message:?}"));
        let (Value::Object(shown), Value::Object(mut written)) = (&message.value, written) else {
            panic!("{message:?} is no object");
        };
        if message.kind == "request" {
            assert_eq!(shown["operation"], message.operation);
        } else {
            // What may be left out is written all the same.
            let optional = |(name, _): &(&String, &Value)| !shown.contains_key(*name);
            let surplus: Map<_, _> = written
                .iter()
                .filter(optional)
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect();
            written.retain(|name, _| !surplus.contains_key(name));
            assert!(
                surplus
                    .values()
                    .all(|v| [json!([]), json!(false)].contains(v)),
                "{surplus:?}"
            );
            if message.operation == "list" || message.operation == "inspect" {
                continue;
            }
        }
        assert_eq!(shown, &written, "{}", message.operation);
    }
}

#[test]
fn the_schema_allows_what_is_shown() {
    let schema = Schema::parse();
    for message in messages() {
        assert!(
            schema.allows(schema.of(&message), &message.value),
            "{message:?}"
        );
    }
}

#[test]
fn the_schema_and_the_code_refuse_the_same_fields() {
    let schema = Schema::parse();
    for message in messages() {
        for (what, value) in variations(&message.value) {
            let allowed = schema.allows(schema.of(&message), &value);
            let varied = Message {
                value,
                ..message_like(&message)
            };
            // `capabilities` has no pool, and every other request has one.
            let no_pool = ["pool", "catalogue", "options"]
                .iter()
                .any(|f| what == format!("no {f}"));
            if message.kind == "request" && no_pool {
                assert!(!allowed, "{what}: {varied:?}");
                continue;
            }
            let read = read_message(&varied);
            assert_eq!(read.is_ok(), allowed, "{what}: {read:?}: {varied:?}");
        }
    }
}

fn message_like(message: &Message) -> Message {
    Message {
        kind: message.kind.clone(),
        operation: message.operation.clone(),
        value: Value::Null,
    }
}

#[test]
fn the_schema_names_every_operation_and_every_error() {
    let schema = Schema::parse();
    let references = schema.0["oneOf"].as_array().unwrap().iter();
    let requests: BTreeSet<String> = references
        .map(|reference| {
            let name = reference["$ref"].as_str().unwrap();
            let name = name.strip_prefix("#/$defs/").unwrap();
            name.strip_suffix("-request").unwrap().to_owned()
        })
        .collect();
    assert_eq!(requests, operations());
    let codes = &schema.definition("error")["properties"]["error"]["properties"]["code"]["enum"];
    assert_eq!(*codes, json!(ErrorCode::ALL));
    for code in ErrorCode::ALL {
        assert_eq!(json!(code), code.word());
        assert!(
            PAGE.contains(&format!("| `{}` |", code.word())),
            "{}",
            code.word()
        );
    }
}

#[test]
fn each_optional_field_is_shown_somewhere() {
    fn keys(value: &Value, into: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                for (name, field) in fields {
                    into.insert(name.clone());
                    keys(field, into);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| keys(item, into)),
            _ => {}
        }
    }
    fn properties(schema: &Value, into: &mut BTreeSet<String>) {
        match schema {
            Value::Object(fields) => {
                for (word, rule) in fields {
                    if word == "properties" {
                        into.extend(rule.as_object().unwrap().keys().cloned());
                    }
                    properties(rule, into);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| properties(item, into)),
            _ => {}
        }
    }
    let (mut shown, mut described) = (BTreeSet::new(), BTreeSet::new());
    for message in messages() {
        keys(&message.value, &mut shown);
    }
    properties(&Schema::parse().0, &mut described);
    let missing: Vec<_> = described.difference(&shown).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
