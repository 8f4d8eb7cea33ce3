//! Invariants of Rust source, one function each.

use std::collections::BTreeMap;

use super::Violation;
use super::rust::{Rust, close};

/// The files that may hold `unsafe`.
const UNSAFE_FILES: &[&str] = &[
    "benches/roofline.rs",
    "crates/mc-backend/src/kernels/compact.rs",
    "crates/mc-backend/src/kernels/compact/eleven.rs",
    "crates/mc-backend/src/kernels/compact/twelve.rs",
    "crates/mc-backend/src/kernels/dots.rs",
    "crates/mc-backend/src/kernels/weighted.rs",
    "crates/mc-backend/src/kernels/few.rs",
    "crates/mc-backend/src/kernels/mod.rs",
    "crates/mc-backend/src/kernels/round.rs",
    "crates/mc-backend/src/kernels/search.rs",
    "crates/mc-backend/src/kernels/sixteen.rs",
    "crates/mc-backend/src/kernels/sixteen/float.rs",
    "crates/mc-backend/src/kernels/sixteen/integer.rs",
    "crates/mc-backend/src/kernels/softmax.rs",
    "crates/mc-backend/src/kernels/tall.rs",
    "crates/mc-backend/src/kernels/tile.rs",
    "crates/mc-backend/src/kernels/transpose.rs",
    "crates/mc-backend/src/pool.rs",
    "crates/mc-checkpoint/src/safetensors.rs",
    "crates/mc-cli/src/main.rs",
    "crates/mc-cli/src/memory.rs",
    "crates/mc-testkit/src/dispatches.rs",
];

/// Lines outside tests from which a file is too long, and from which it is about to be.
const TOO_LONG: usize = 600;
const LONG: usize = 500;

const OPS: &str = "crates/mc-backend/src/ops/";

/// What is in [`OPS`] and has no gradient to check: the modules' root, the composed ops, which are the witnesses of the
/// others, the embedding, whose table is frozen and whose ids are integers, caches, which nothing is trained through, and what is no op but what ops
/// are made of.
const WITHOUT_GRADIENT: &[&str] = &["mod", "composed", "embedding", "block", "group", "cache"];

/// The file opens with `//!`.
pub(super) fn module_doc(file: &Rust) -> Vec<Violation> {
    if file.text.starts_with("//!") { Vec::new() } else { vec![file.violation(0, "does not open with `//!`")] }
}

/// No `.unwrap()` and `.expect(…)` outside tests.
pub(super) fn no_unwrap(file: &Rust) -> Vec<Violation> {
    file.find(&[".unwrap()", ".expect("], |at| !file.is_test(at))
}

/// Nothing is printed outside tests, binaries, examples and build scripts.
pub(super) fn no_print(file: &Rust) -> Vec<Violation> {
    let prints = ["crates/mc-cli/", "xtask/", "examples/", "benches/"];
    if prints.iter().any(|folder| file.path.starts_with(folder)) || file.path.ends_with("/build.rs") {
        return Vec::new();
    }
    file.find(&["println!", "eprintln!", "print!", "eprint!"], |at| !file.is_test(at))
}

/// No `todo!`, `unimplemented!`, `dbg!` and `#[ignore]`, in tests neither.
pub(super) fn nothing_unfinished(file: &Rust) -> Vec<Violation> {
    file.find(&["todo!", "unimplemented!", "dbg!", "#[ignore"], |_| true)
}

/// No `…_no_bwd` outside mc-backend and tests.
pub(super) fn no_bwd_ops(file: &Rust) -> Vec<Violation> {
    if file.path.starts_with("crates/mc-backend/") {
        return Vec::new();
    }
    let at = file.code.match_indices("_no_bwd").map(|(at, _)| at).filter(|at| !file.is_test(*at));
    at.map(|at| file.violation(at, "uses a `_no_bwd` op")).collect()
}

/// Files that may ask for the system, though not for a device: the allocator and TLS of Apple's systems are their own.
const SYSTEM_CFG_FILES: &[&str] =
    &["benches/roofline.rs", "crates/mc-cli/src/memory.rs", "crates/mc-checkpoint/src/hub/http.rs"];

/// No `cfg` on a device or a system outside mc-backend. (`unix` is about files and signals, and free.)
pub(super) fn device_cfg(file: &Rust) -> Vec<Violation> {
    if file.path.starts_with("crates/mc-backend/") {
        return Vec::new();
    }
    let mut violations = Vec::new();
    for start in ["cfg(", "cfg!(", "cfg_attr("] {
        for at in file.words(start) {
            let open = at + start.len() - 1;
            let condition = &file.text[open..close(&file.code, open)];
            let condition: String = condition.chars().filter(|c| !c.is_whitespace()).collect();
            let devices = ["feature=\"metal\"", "feature=\"cuda\"", "feature=\"accelerate\""];
            let systems = ["target_os", "target_arch", "target_vendor", "target_family", "windows"];
            let systems = systems.iter().filter(|_| !SYSTEM_CFG_FILES.contains(&file.path.as_str()));
            let named = devices.iter().chain(systems).filter(|name| condition.contains(*name));
            violations.extend(named.map(|device| file.violation(at, &format!("`cfg` on {device}"))));
        }
    }
    violations
}

/// `unsafe` is in [`UNSAFE_FILES`] alone, each under a `// SAFETY:` (an `unsafe fn` may have `# Safety` in its docs).
pub(super) fn unsafe_listed(file: &Rust) -> Vec<Violation> {
    let mut violations = Vec::new();
    for at in file.words("unsafe") {
        if !UNSAFE_FILES.contains(&file.path.as_str()) {
            violations.push(file.violation(at, "`unsafe` in a file that is not listed for it"));
        } else if !file.has_safety_comment(at) {
            violations.push(file.violation(at, "`unsafe` without a `// SAFETY:` comment above"));
        }
    }
    violations
}

/// What `simd` runs is `#[inline(always)]`, outside tests.
pub(super) fn vectors_inlined(file: &Rust) -> Vec<Violation> {
    let call = "simd(";
    let is_inlined = |at: &usize| file.code[at + call.len()..].trim_start().starts_with("#[inline(always)]");
    let calls = file.words(call).into_iter().filter(|at| !file.is_test(*at) && !is_inlined(at));
    calls.map(|at| file.violation(at, "`simd` of a closure that is not `#[inline(always)]`")).collect()
}

/// At most [`TOO_LONG`] lines outside tests.
pub(super) fn file_length(file: &Rust) -> Vec<Violation> {
    let lines = file.lines_outside_tests();
    if lines <= TOO_LONG {
        return Vec::new();
    }
    vec![Violation { place: file.path.clone(), found: format!("{lines} lines outside tests, at most {TOO_LONG}") }]
}

/// What to say of a file that is not too long yet.
pub(super) fn long_file(file: &Rust) -> Option<String> {
    let lines = file.lines_outside_tests();
    (lines > LONG && lines <= TOO_LONG).then(|| format!("{}: {lines} lines outside tests", file.path))
}

/// Every op, a file or a folder in [`OPS`], calls `gradcheck`, except [`WITHOUT_GRADIENT`].
pub(super) fn gradchecked_ops(files: &[Rust]) -> Vec<Violation> {
    let mut ops: BTreeMap<&str, bool> = BTreeMap::new();
    for file in files {
        let Some(inside) = file.path.strip_prefix(OPS) else {
            continue;
        };
        let op = inside.split_once('/').map_or(inside, |(folder, _)| folder).trim_end_matches(".rs");
        *ops.entry(op).or_default() |= !file.words("gradcheck(").is_empty();
    }
    let unchecked = ops.iter().filter(|(op, checked)| !**checked && !WITHOUT_GRADIENT.contains(*op));
    unchecked.map(|(op, _)| Violation { place: format!("{OPS}{op}"), found: "no gradcheck(…)".to_owned() }).collect()
}

#[cfg(test)]
mod tests {
    //! Each invariant catches a violation and passes its opposite.
    use super::*;

    const LIBRARY: &str = "crates/mc-models/src/rope.rs";

    /// The lines at which `check` finds something in a library file of this text.
    fn lines(check: fn(&Rust) -> Vec<Violation>, text: &str) -> Vec<usize> {
        lines_in(LIBRARY, check, text)
    }

    fn lines_in(path: &str, check: fn(&Rust) -> Vec<Violation>, text: &str) -> Vec<usize> {
        let found = check(&Rust::parse(path, text));
        found.iter().map(|v| v.place.rsplit_once(':').map_or(1, |(_, line)| line.parse().unwrap())).collect()
    }

    #[test]
    fn the_file_of_a_test_module_is_a_test() {
        let file = |path: &str, text: &str| (path.to_owned(), text.to_owned());
        let files = crate::tidy::rust::read(&[
            file("crates/mc-lora/src/lib.rs", "#[cfg(test)]\nmod contract;\nmod layer;\n"),
            file("crates/mc-lora/src/contract.rs", "fn a() { x.unwrap(); }"),
            file("crates/mc-lora/src/layer.rs", "fn a() { x.unwrap(); }"),
            file("crates/mc-lora/tests/golden.rs", "fn a() { x.unwrap(); }"),
        ]);
        assert_eq!(files.iter().map(|file| no_unwrap(file).len()).collect::<Vec<_>>(), [0, 0, 1, 0]);
    }

    #[test]
    fn module_docs() {
        assert_eq!(lines(module_doc, "use x;\n//! Rotary."), [1]);
        assert_eq!(lines(module_doc, "//! Rotary.\nuse x;"), [0; 0]);
    }

    #[test]
    fn unwrap_outside_tests() {
        assert_eq!(lines(no_unwrap, "fn a() {\n    x\n        .unwrap();\n    y.expect(\"z\");\n}"), [3, 4]);
        assert_eq!(
            lines(no_unwrap, "/// `x.unwrap()`\n#[expect(lint)]\nfn a() { x.unwrap_or(\".unwrap()\") }"),
            [0; 0]
        );
        assert_eq!(lines(no_unwrap, "#[test]\nfn a() { x.unwrap(); }"), [0; 0]);
    }

    #[test]
    fn print_outside_binaries() {
        let text = "fn a() {\n    println!(\"x\");\n    eprint!(\"y\");\n}";
        assert_eq!(lines(no_print, text), [2, 3]);
        assert_eq!(lines_in("crates/mc-cli/src/main.rs", no_print, text), [0; 0]);
    }

    #[test]
    fn unfinished_in_tests_too() {
        let text = "#[test]\n#[ignore = \"slow\"]\nfn a() {\n    todo!()\n}\n// todo!()";
        assert_eq!(lines(nothing_unfinished, text), [4, 2]);
    }

    #[test]
    fn no_bwd_outside_the_backend() {
        let text = "fn a() { x.apply_op1_no_bwd(&op) }";
        assert_eq!(lines(no_bwd_ops, text), [1]);
        assert_eq!(lines_in("crates/mc-backend/src/ops/rope.rs", no_bwd_ops, text), [0; 0]);
    }

    #[test]
    fn device_cfgs_outside_the_backend() {
        let text = "#[cfg(all(unix, feature = \"metal\"))]\nfn a() {\n    if cfg!(\n        target_os = \"macos\"\n    ) {}\n}";
        assert_eq!(lines(device_cfg, text), [1, 3]);
        assert_eq!(lines_in("crates/mc-backend/src/device.rs", device_cfg, text), [0; 0]);
        let apple = "#[cfg(target_vendor = \"apple\")]\nfn a() {}\n#[cfg(feature = \"metal\")]\nfn b() {}";
        assert_eq!(lines(device_cfg, apple), [1, 3]);
        assert_eq!(lines_in("crates/mc-cli/src/memory.rs", device_cfg, apple), [3]);
        assert_eq!(
            lines(device_cfg, "#[cfg(unix)]\nfn a() { b(\"feature = \\\"metal\\\"\") } // cfg(target_os)"),
            [0; 0]
        );
    }

    #[test]
    fn unsafe_is_listed_and_reasoned() {
        assert_eq!(lines(unsafe_listed, "#![deny(unsafe_code)]\n// unsafe\nfn a() {\n    unsafe { b() }\n}"), [4]);
        let says_why = |text: &str, at: usize| Rust::parse(LIBRARY, text).has_safety_comment(at);
        let check = |text: &str| says_why(text, text.find("unsafe").unwrap());
        assert!(check("// SAFETY: read-only.\n#[inline]\nlet x =\n    unsafe { b() };"));
        assert!(check("/// # Safety\n/// `x` is aligned.\npub unsafe fn a() {}"));
        assert!(!check("// SAFETY: of another.\nb();\nlet x = unsafe { c() };"));
        assert!(!check("// SAFETY: far away.\n\nunsafe impl Send for A {}"));
    }

    #[test]
    fn what_simd_runs_is_inlined() {
        let inlined = "    simd(\n        // Long.\n        #[inline(always)]\n        || sum(x),\n    );\n";
        assert_eq!(
            lines(
                vectors_inlined,
                &format!("fn a() {{\n{inlined}    simd(|| sum(x));\n    b::simd(\n        sum);\n}}")
            ),
            [7, 8]
        );
        assert_eq!(
            lines(vectors_inlined, "fn simd<R>() {}\nfn a() { no_simd(b) }\n#[test]\nfn b() { simd(|| c()) }"),
            [0; 0]
        );
    }

    #[test]
    fn length_counts_lines_outside_tests() {
        let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", "    // x\n".repeat(700));
        let file = |lines: usize| Rust::parse(LIBRARY, &("fn a() {}\n".repeat(lines) + &tests));
        assert_eq!(file_length(&file(TOO_LONG)), []);
        assert_eq!(file_length(&file(TOO_LONG + 1)).len(), 1);
        assert_eq!([LONG, LONG + 1, TOO_LONG + 1].map(|lines| long_file(&file(lines)).is_some()), [false, true, false]);
    }

    #[test]
    fn ops_are_gradchecked() {
        let op = |path: &str, text: &str| Rust::parse(&format!("{OPS}{path}"), text);
        let checked = "#[test]\nfn a() { gradcheck(f, &[x]); }";
        let files = [
            op("mod.rs", ""),
            op("composed.rs", ""),
            op("rope.rs", checked),
            op("rms_norm.rs", "// gradcheck(f)"),
            op("attention/mod.rs", checked),
            op("attention/tiles.rs", ""),
        ];
        let found = gradchecked_ops(&files);
        assert_eq!(found.iter().map(|v| v.place.as_str()).collect::<Vec<_>>(), [format!("{OPS}rms_norm")]);
    }
}
