//! Settling without a database: changes of rows in, activities out.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::databases::postgres::capture::new_activity::CommitMark;
use crate::databases::postgres::pgoutput::{Cell, OldTuple};
use crate::databases::postgres::tables::layout::Layout;
use crate::databases::postgres::tables::value::Form;
use crate::feed::entity::{Catalog, KeptColumnNames};

fn text(value: &str) -> Cell {
    Cell::Text(Bytes::copy_from_slice(value.as_bytes()))
}

/// The table's columns: id, org, name, deleted_at, transactions, and what else is given.
fn source(more: &[&str]) -> Arc<Source> {
    let config =
        toml::from_str("type = 'row'\ntable = 'rows'\nscope = 'org'\nprevious_values = true").unwrap();
    let entity = Catalog::new(&[config]).by_name("row").unwrap().clone();
    let kept = KeptColumnNames {
        transactions: Some("transactions".into()),
        deleted_at: Some("deleted_at".into()),
        ..KeptColumnNames::default()
    };
    let columns =
        ["id", "org", "name", "deleted_at"].iter().chain(more).map(|name| ((*name).to_owned(), Form::Text));
    let columns = columns.chain([("transactions".to_owned(), Form::Json)]);
    let layout = Layout::new(&entity, &kept, columns).unwrap();
    Arc::new(Source { entity, layout })
}

fn row(scope: &str, name: &str, deleted: bool) -> Tuple {
    let deleted = if deleted { text("2026-01-01") } else { Cell::Null };
    vec![text("k"), text(scope), text(name), deleted, Cell::Null]
}

fn change(source: &Arc<Source>, kind: ChangeKind, settled: bool) -> Change {
    let commit = CommitMark { id: 7, micros: 0 };
    Change { source: source.clone(), kind, ids: None, commit, settled }
}

fn update(source: &Arc<Source>, old: Tuple, new: Tuple) -> Change {
    change(source, ChangeKind::Update(Some(OldTuple { whole: true, tuple: old }), new), true)
}

fn name_of(source: &Source) -> RowName {
    (source.entity.name.clone(), "k".into())
}

/// What the log has of the row `k`, alive in a scope with this JSON.
fn logged(source: &Source, scope: &str, json: &str) -> HashMap<RowName, LoggedRow> {
    let alive = Alive { scope: Some(scope.into()), value: json.into() };
    let logged = LoggedRow { last_value: Some(alive.value.clone()), alive: Some(alive), commit: Some(1) };
    HashMap::from([(name_of(source), logged)])
}

/// The activities of one transaction, as action and scope.
fn settle(settler: &mut Settler, changes: &[Change]) -> Vec<(Action, Option<String>)> {
    for change in changes {
        settler.take(change);
    }
    settler.end_transaction();
    settler.finish().into_iter().map(|activity| (activity.action, activity.scope)).collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct RowState {
    scope: &'static str,
    name: &'static str,
    deleted: bool,
}

fn version() -> impl Strategy<Value = Option<RowState>> {
    let version = (prop::sample::select(vec!["a", "b"]), prop::sample::select(vec!["x", "y"]), any::<bool>());
    prop::option::of(version.prop_map(|(scope, name, deleted)| RowState { scope, name, deleted }))
}

proptest! {
    /// A reader that applies a scope's activities has the scope's rows, whatever the row went through.
    #[test]
    fn the_lists_follow_a_row_through_any_history(history in prop::collection::vec(version(), 1..12)) {
        let source = source(&[]);
        let mut settler = Settler::new(0);
        let mut now: Option<RowState> = None;
        let mut lists: HashMap<String, &str> = HashMap::new();
        for next in history {
            let tuple = |version: RowState| row(version.scope, version.name, version.deleted);
            let kind = match (now, next) {
                (None, None) => continue,
                (None, Some(new)) => ChangeKind::Insert(tuple(new)),
                (Some(old), Some(new)) => ChangeKind::Update(Some(OldTuple { whole: true, tuple: tuple(old) }), tuple(new)),
                (Some(old), None) => ChangeKind::Delete(OldTuple { whole: true, tuple: tuple(old) }),
            };
            for (action, scope) in settle(&mut settler, &[change(&source, kind, true)]) {
                let scope = scope.unwrap();
                match action {
                    Action::Create => prop_assert!(lists.insert(scope, next.unwrap().name).is_none()),
                    Action::Update => prop_assert!(lists.insert(scope, next.unwrap().name).is_some()),
                    Action::Delete => prop_assert!(lists.remove(&scope).is_some()),
                }
            }
            now = next;
            let visible = now.filter(|version| !version.deleted);
            let expected: HashMap<String, &str> =
                visible.map(|version| (version.scope.to_owned(), version.name)).into_iter().collect();
            prop_assert_eq!(&lists, &expected);
        }
    }
}

#[test]
fn an_update_that_alters_no_value_is_no_activity() {
    let source = source(&[]);
    let mut settler = Settler::new(0);
    assert_eq!(settle(&mut settler, &[update(&source, row("a", "x", false), row("a", "x", false))]), []);
    assert!(settler.unseen.is_empty());
    // While its table is compared, the comparison must know of the update.
    settler.know(logged(&source, "a", r#"{"id":"k","org":"a","name":"x"}"#));
    let unsettled = change(&source, ChangeKind::Update(None, row("a", "x", false)), false);
    assert_eq!(settle(&mut settler, &[unsettled]), []);
    assert_eq!(settler.unseen, [(name_of(&source), 7)]);
}

#[test]
fn an_update_takes_a_dropped_column_out_of_the_logs_version() {
    let source = source(&[]);
    let mut settler = Settler::new(0);
    settler.know(logged(&source, "a", r#"{"id":"k","org":"a","name":"x","gone":3,"empty":null}"#));
    settler.take(&change(&source, ChangeKind::Update(None, row("a", "x", false)), false));
    settler.end_transaction();
    let [activity] = &settler.finish()[..] else { panic!("one activity is expected") };
    assert_eq!(activity.changed_keys.as_deref(), Some(r#"["gone"]"#));
    assert!(!activity.value.as_deref().unwrap().contains("gone"));
    assert!(settler.unseen.is_empty(), "the log shows the change");
}

#[test]
fn an_announced_delete_is_one_activity_and_without_the_delete_an_update() {
    let source = source(&[]);
    let mut announcing = row("a", "x", false);
    announcing[4] = text(r#"{"delete":"0198c2a4-0000-7000-8000-000000000001"}"#);
    let announcement = || update(&source, row("a", "x", false), announcing.clone());
    let deletion =
        change(&source, ChangeKind::Delete(OldTuple { whole: true, tuple: announcing.clone() }), true);
    let mut settler = Settler::new(0);
    settler.take(&announcement());
    settler.take(&deletion);
    settler.end_transaction();
    let [activity] = &settler.finish()[..] else { panic!("one activity is expected") };
    assert_eq!(activity.action, Action::Delete);
    assert_eq!(activity.transaction.as_deref(), Some("0198c2a4-0000-7000-8000-000000000001"));
    assert_eq!(settle(&mut settler, &[announcement()]), [(Action::Update, Some("a".into()))]);
}

#[test]
fn the_last_change_of_each_scope_and_of_the_type_is_marked() {
    let source = source(&[]);
    let mut settler = Settler::new(0);
    let insert = |key: &str, scope: &str| {
        let mut tuple = row(scope, "x", false);
        tuple[0] = text(key);
        change(&source, ChangeKind::Insert(tuple), true)
    };
    for change in [insert("1", "a"), insert("2", "b"), insert("3", "a")] {
        settler.take(&change);
    }
    settler.end_transaction();
    let last: Vec<i16> = settler.finish().iter().map(|activity| activity.last).collect();
    assert_eq!(last, [0, 1, 3]);
}

#[test]
fn a_value_that_neither_the_stream_nor_the_log_has_is_asked_for_by_a_comparison() {
    let source = source(&[]);
    let mut settler = Settler::new(0);
    let mut partial = row("a", "x", false);
    partial[2] = Cell::Unchanged;
    assert_eq!(settle(&mut settler, &[change(&source, ChangeKind::Update(None, partial), false)]), []);
    assert_eq!(settler.unknown, std::slice::from_ref(&source.entity.name));
}

#[test]
fn a_row_that_leaves_while_its_table_is_compared_is_logged_before_it_leaves() {
    let source = source(&[]);
    let mut settler = Settler::new(0);
    let old = OldTuple { whole: true, tuple: row("a", "x", false) };
    settler.know(HashMap::from([(name_of(&source), LoggedRow::default())]));
    let deletion = change(&source, ChangeKind::Delete(old), false);
    let scope = Some("a".to_owned());
    assert_eq!(settle(&mut settler, &[deletion]), [(Action::Create, scope.clone()), (Action::Delete, scope)]);
}
