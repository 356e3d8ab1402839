//! Every requirement of `spec/` is carried out somewhere and tested somewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// Which sides cite a requirement.
#[derive(Default)]
struct Cited {
    code: bool,
    test: bool,
}

fn files(dir: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() && name != "target" && name != ".git" {
            files(&path, ending, found);
        } else if path.extension().is_some_and(|e| e == ending) {
            found.push(path);
        }
    }
}

/// The requirements of one file, and those that say they are not met yet.
fn requirements(path: &Path) -> (BTreeSet<String>, BTreeSet<String>) {
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    let (mut all, mut todo) = (BTreeSet::new(), BTreeSet::new());
    let mut last = String::new();
    for line in fs::read_to_string(path).unwrap().lines() {
        if let Some(id) = line.strip_prefix("## ") {
            last = format!("spec/{name}#{id}");
            assert!(all.insert(last.clone()), "{last} stands twice");
        } else if line.starts_with("todo:") {
            todo.insert(last.clone());
        }
    }
    (all, todo)
}

#[test]
fn every_requirement_is_carried_out_and_tested() {
    let root = Path::new(ROOT);
    let (mut all, mut todo) = (BTreeSet::new(), BTreeSet::new());
    let mut texts = Vec::new();
    files(&root.join("spec"), "md", &mut texts);
    for text in texts.iter().filter(|path| !path.ends_with("README.md")) {
        let (found, open) = requirements(text);
        all.extend(found);
        todo.extend(open);
    }
    assert!(!all.is_empty());

    let mut cited: BTreeMap<String, Cited> = BTreeMap::new();
    let mut sources = Vec::new();
    for dir in ["core", "shell-linux", "shell-dpdk", "fuzz"] {
        files(&root.join(dir), "rs", &mut sources);
    }
    for source in &sources {
        let mut in_tests =
            source.components().any(|c| c.as_os_str() == "tests") || source.ends_with("tests.rs");
        for line in fs::read_to_string(source).unwrap().lines() {
            in_tests |= line.trim() == "mod tests {";
            if let Some(id) = line.trim().strip_prefix("//= ") {
                let sides = cited.entry(id.to_owned()).or_default();
                *(if in_tests { &mut sides.test } else { &mut sides.code }) = true;
            }
        }
    }

    let mut wrong = Vec::new();
    for id in cited.keys().filter(|id| !all.contains(*id)) {
        wrong.push(format!("{id} is cited but does not exist"));
    }
    for id in all.iter().filter(|id| !todo.contains(*id)) {
        match cited.get(id) {
            None => wrong.push(format!("{id} is cited nowhere")),
            Some(sides) if !sides.code => wrong.push(format!("{id} is not cited by code")),
            Some(sides) if !sides.test => wrong.push(format!("{id} is not cited by a test")),
            Some(_) => {}
        }
    }
    println!("{} requirements, {} not met yet: {todo:?}", all.len(), todo.len());
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
