//! Invariants of the crate graph. Knows `cargo metadata`, reads no source.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde_json::Value;

use super::Violation;
use crate::process;

/// Each crate and those it may depend on. Dev-dependencies are free: tests may look up and sideways.
const EDGES: &[(&str, &[&str])] = &[
    ("mc-text", &[]),
    ("mc-backend", &[]),
    ("mc-checkpoint", &["mc-backend"]),
    ("mc-models", &["mc-backend", "mc-checkpoint"]),
    ("mc-lora", &["mc-backend", "mc-checkpoint", "mc-models"]),
    ("mc-train", &["mc-text", "mc-backend", "mc-checkpoint", "mc-models", "mc-lora"]),
    ("mc-infer", &["mc-text", "mc-backend", "mc-checkpoint", "mc-models"]),
    ("mc-embed", &["mc-text", "mc-backend", "mc-checkpoint", "mc-models"]),
    (
        "metal-candle",
        &["mc-text", "mc-backend", "mc-checkpoint", "mc-models", "mc-lora", "mc-train", "mc-infer", "mc-embed"],
    ),
    ("mc-cli", &["metal-candle"]),
    ("mc-testkit", &[]),
];

const ASYNC_RUNTIMES: &[&str] = &["tokio", "async-std", "async-executor", "smol", "monoio", "glommio", "compio"];

/// The packages under `crates/` and what each package of the build depends on.
pub(crate) struct House {
    crates: BTreeSet<String>,
    /// Package → packages it needs to be built and run, for all features and targets; dev-dependencies left out.
    needs: BTreeMap<String, BTreeSet<String>>,
}

/// Every crate depends only on those that [`EDGES`] allows it.
pub(super) fn edges(house: &House) -> Vec<Violation> {
    let mut violations = Vec::new();
    for name in &house.crates {
        let Some((_, allowed)) = EDGES.iter().find(|(known, _)| known == name) else {
            violations.push(violation(name, "is not in the table of crate edges".to_owned()));
            continue;
        };
        let ours = house.needs[name].iter().filter(|needed| house.crates.contains(*needed));
        let wrong = ours.filter(|needed| !allowed.contains(&needed.as_str()));
        violations.extend(wrong.map(|needed| violation(name, format!("depends on {needed}"))));
    }
    violations
}

/// mc-text reaches no crate of candle.
pub(super) fn text_without_candle(house: &House) -> Vec<Violation> {
    reached(house, "mc-text", |package| package.starts_with("candle"))
}

/// Of the crates, mc-backend alone depends on candle-nn, and none on candle-transformers.
pub(super) fn candle_nn_in_backend(house: &House) -> Vec<Violation> {
    let mut violations = Vec::new();
    for name in &house.crates {
        for package in ["candle-nn", "candle-transformers"] {
            let allowed = name == "mc-backend" && package == "candle-nn";
            if !allowed && house.needs[name].contains(package) {
                violations.push(violation(name, format!("depends on {package}")));
            }
        }
    }
    violations
}

/// No crate but mc-cli reaches an async runtime.
pub(super) fn no_async_runtime(house: &House) -> Vec<Violation> {
    let libraries = house.crates.iter().filter(|name| *name != "mc-cli");
    libraries.flat_map(|name| reached(house, name, |package| ASYNC_RUNTIMES.contains(&package))).collect()
}

/// The packages that `name` reaches and `unwanted` names.
fn reached(house: &House, name: &str, unwanted: impl Fn(&str) -> bool) -> Vec<Violation> {
    let mut seen = BTreeSet::from([name]);
    let mut next = vec![name];
    while let Some(package) = next.pop() {
        let needs = house.needs.get(package).into_iter().flatten();
        next.extend(needs.map(String::as_str).filter(|needed| seen.insert(needed)));
    }
    let found = seen.into_iter().filter(|package| unwanted(package));
    found.map(|package| violation(name, format!("reaches {package}"))).collect()
}

fn violation(name: &str, found: String) -> Violation {
    Violation { place: format!("crates/{name}/Cargo.toml"), found }
}

impl House {
    pub(super) fn read() -> Result<Self> {
        let mut metadata = process::cargo();
        metadata.args(["metadata", "--format-version", "1", "--all-features", "--quiet"]);
        let metadata = serde_json::from_str(&process::output(&mut metadata)?)?;
        Self::parse(&metadata).context("cargo metadata has not the fields it should have")
    }

    fn parse(metadata: &Value) -> Option<Self> {
        let root = metadata["workspace_root"].as_str()?;
        let mut names = BTreeMap::new();
        let mut crates = BTreeSet::new();
        for package in metadata["packages"].as_array()? {
            let (id, name) = (package["id"].as_str()?, package["name"].as_str()?);
            names.insert(id, name);
            if package["manifest_path"].as_str()?.starts_with(&format!("{root}/crates/")) {
                crates.insert(name.to_owned());
            }
        }
        let mut needs: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for node in metadata["resolve"]["nodes"].as_array()? {
            // Two versions of one package share an entry: what either needs is needed.
            let needed = needs.entry((*names.get(node["id"].as_str()?)?).to_owned()).or_default();
            for dependency in node["deps"].as_array()? {
                if dependency["dep_kinds"].as_array()?.iter().any(|kind| kind["kind"] != "dev") {
                    needed.insert((*names.get(dependency["pkg"].as_str()?)?).to_owned());
                }
            }
        }
        Some(Self { crates, needs })
    }
}

#[cfg(test)]
mod tests {
    //! Each invariant catches a violation and passes its opposite.
    use serde_json::json;

    use super::*;

    /// A house of `(package, needs, dev-needs)`; packages whose name starts with `mc-` or `metal-` are under `crates/`.
    fn house(packages: &[(&str, &[&str], &[&str])]) -> House {
        let id = |name: &str| format!("registry#{name}");
        let describe = |name: &str| {
            let ours = name.starts_with("mc-") || name.starts_with("metal-");
            let folder = if ours { "/house/crates" } else { "/elsewhere" };
            json!({"id": id(name), "name": name, "manifest_path": format!("{folder}/{name}/Cargo.toml")})
        };
        let node = |(name, needs, dev): &(&str, &[&str], &[&str])| {
            let normal = needs.iter().map(|name| json!({"pkg": id(name), "dep_kinds": [{"kind": null}]}));
            let dev = dev.iter().map(|name| json!({"pkg": id(name), "dep_kinds": [{"kind": "dev"}]}));
            json!({"id": id(name), "deps": normal.chain(dev).collect::<Vec<_>>()})
        };
        House::parse(&json!({
            "workspace_root": "/house",
            "packages": packages.iter().map(|(name, ..)| describe(name)).collect::<Vec<_>>(),
            "resolve": {"nodes": packages.iter().map(node).collect::<Vec<_>>()},
        }))
        .unwrap()
    }

    fn found(violations: &[Violation]) -> Vec<String> {
        violations.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_edge_upwards_is_found() {
        let house =
            house(&[("mc-backend", &["mc-models"], &[]), ("mc-models", &[], &["mc-lora"]), ("mc-lora", &[], &[])]);
        assert_eq!(found(&edges(&house)), ["crates/mc-backend/Cargo.toml: depends on mc-models"]);
    }

    #[test]
    fn siblings_do_not_know_each_other_and_a_new_crate_needs_a_place() {
        let house = house(&[("mc-train", &["mc-infer"], &[]), ("mc-infer", &[], &[]), ("mc-new", &[], &[])]);
        assert_eq!(
            found(&edges(&house)),
            [
                "crates/mc-new/Cargo.toml: is not in the table of crate edges",
                "crates/mc-train/Cargo.toml: depends on mc-infer"
            ]
        );
    }

    #[test]
    fn candle_behind_another_package_is_found() {
        let house =
            house(&[("mc-text", &["middle"], &[]), ("middle", &["candle-core"], &[]), ("candle-core", &[], &[])]);
        assert_eq!(found(&text_without_candle(&house)), ["crates/mc-text/Cargo.toml: reaches candle-core"]);
    }

    #[test]
    fn candle_nn_is_free_in_tests_and_in_the_backend() {
        let house = house(&[
            ("mc-backend", &["candle-nn"], &[]),
            ("mc-models", &[], &["candle-nn"]),
            ("mc-train", &["candle-nn"], &[]),
            ("candle-nn", &[], &[]),
        ]);
        assert_eq!(found(&candle_nn_in_backend(&house)), ["crates/mc-train/Cargo.toml: depends on candle-nn"]);
    }

    #[test]
    fn a_runtime_is_free_in_the_binary_alone() {
        let house = house(&[
            ("mc-cli", &["tokio"], &[]),
            ("mc-infer", &[], &["tokio"]),
            ("mc-checkpoint", &["client"], &[]),
            ("client", &["tokio"], &[]),
            ("tokio", &[], &[]),
        ]);
        assert_eq!(found(&no_async_runtime(&house)), ["crates/mc-checkpoint/Cargo.toml: reaches tokio"]);
    }
}
