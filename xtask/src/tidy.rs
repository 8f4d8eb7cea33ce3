//! `cargo xtask tidy`: the invariants of the tree that no compiler knows, each with its reason. The test at the end of
//! this file runs them, so `cargo test` does. Compiles nothing.

mod house;
mod rust;
mod source;
mod text;

use std::fmt;

use anyhow::{Context, Result, bail};

use crate::process::{self, command};
use house::House;
use rust::Rust;

/// One thing that is not as it should be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    /// The file, from the root, with the line where there is one.
    place: String,
    /// What was found there.
    found: String,
}

/// An invariant: what must hold, why, and the function that looks.
struct Invariant {
    name: &'static str,
    reason: &'static str,
    check: Check,
}

enum Check {
    Rust(fn(&Rust) -> Vec<Violation>),
    Tree(fn(&Tree) -> Vec<Violation>),
}

/// All that the invariants look at.
pub(crate) struct Tree {
    /// The path and text of every text file that git has or would add.
    files: Vec<(String, String)>,
    rust: Vec<Rust>,
    house: House,
}

const INVARIANTS: &[Invariant] = &[
    Invariant {
        name: "crate-edges",
        reason: "each crate depends only on the crates below it, so that people can take one without the rest",
        check: Check::Tree(|tree| house::edges(&tree.house)),
    },
    Invariant {
        name: "text-without-candle",
        reason: "mc-text turns text into ids and back; whoever wants only that compiles no tensors",
        check: Check::Tree(|tree| house::text_without_candle(&tree.house)),
    },
    Invariant {
        name: "candle-nn-in-backend",
        reason: "candle-nn's fused ops return no gradient and no error; mc-backend wraps them with one",
        check: Check::Tree(|tree| house::candle_nn_in_backend(&tree.house)),
    },
    Invariant {
        name: "no-async-runtime",
        reason: "a library does not choose its caller's async runtime; only mc-cli may bring one",
        check: Check::Tree(|tree| house::no_async_runtime(&tree.house)),
    },
    Invariant {
        name: "gradchecked-ops",
        reason: "an op whose backward is wrong trains, badly, and says nothing",
        check: Check::Tree(|tree| source::gradchecked_ops(&tree.rust)),
    },
    Invariant {
        name: "no-bwd-ops",
        reason: "`_no_bwd` cuts the graph without an error; ops that models use have a gradient",
        check: Check::Rust(source::no_bwd_ops),
    },
    Invariant {
        name: "device-cfg",
        reason: "everything above mc-backend is the same code on every device",
        check: Check::Rust(source::device_cfg),
    },
    Invariant {
        name: "module-doc",
        reason: "a file says what it is for and what it does not know",
        check: Check::Rust(source::module_doc),
    },
    Invariant {
        name: "no-unwrap",
        reason: "input never makes the library panic; errors name what the user can mend",
        check: Check::Rust(source::no_unwrap),
    },
    Invariant { name: "no-print", reason: "libraries report, binaries print", check: Check::Rust(source::no_print) },
    Invariant {
        name: "nothing-unfinished",
        reason: "what is not done is not in the tree, and a test that does not run is not a test",
        check: Check::Rust(source::nothing_unfinished),
    },
    Invariant {
        name: "unsafe-listed",
        reason: "unsafe lives in few files, and each block says why it is sound",
        check: Check::Rust(source::unsafe_listed),
    },
    Invariant {
        name: "vectors-inlined",
        reason: "a closure that is called and not inlined is compiled for any CPU, a call of `fmaf` for each multiply-add",
        check: Check::Rust(source::vectors_inlined),
    },
    Invariant {
        name: "file-length",
        reason: "a file this long holds two things",
        check: Check::Rust(source::file_length),
    },
    Invariant {
        name: "root-documents",
        reason: "the root has README, CHANGELOG and CONTRIBUTING; everything else is in docs",
        check: Check::Tree(|tree| text::root_documents(&tree.files)),
    },
    Invariant {
        name: "no-machine-paths",
        reason: "the tree speaks of the project alone, not of the machine it was written on",
        check: Check::Tree(|tree| text::no_machine_paths(&tree.files)),
    },
];

pub(crate) fn run() -> Result<()> {
    let tree = Tree::read()?;
    for warning in tree.rust.iter().filter_map(source::long_file) {
        println!("warning: {warning}");
    }
    let violations = violations(&tree);
    for violation in &violations {
        println!("{violation}");
    }
    if !violations.is_empty() {
        bail!("{} violations of the tree's invariants", violations.len());
    }
    println!("tidy: {} invariants hold in {} files", INVARIANTS.len(), tree.files.len());
    Ok(())
}

/// Every violation as a line that names its invariant and the reason for it.
fn violations(tree: &Tree) -> Vec<String> {
    let mut lines = Vec::new();
    for Invariant { name, reason, check } in INVARIANTS {
        let found = match check {
            Check::Rust(check) => tree.rust.iter().flat_map(check).collect(),
            Check::Tree(check) => check(tree),
        };
        lines.extend(found.iter().map(|violation| format!("{violation} [{name}: {reason}]")));
    }
    lines
}

impl Tree {
    fn read() -> Result<Self> {
        let root = process::root();
        // Files that git does not have yet are held to the same rules; the ignored ones are not ours.
        let listed =
            process::output(command("git").args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]))?;
        let mut files = Vec::new();
        for path in listed.split_terminator('\0') {
            match std::fs::read(root.join(path)) {
                Ok(bytes) => files.extend(String::from_utf8(bytes).ok().map(|text| (path.to_owned(), text))),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).with_context(|| format!("cannot read {path}")),
            }
        }
        let rust = rust::read(&files);
        Ok(Self { files, rust, house: House::read()? })
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.found)
    }
}

#[cfg(test)]
mod tests {
    //! The tree itself.
    use super::*;

    #[test]
    fn the_tree_is_tidy() {
        let found = violations(&Tree::read().unwrap());
        assert!(found.is_empty(), "\n{}", found.join("\n"));
    }
}
