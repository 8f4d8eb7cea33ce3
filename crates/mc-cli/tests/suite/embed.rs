//! `embed`: lines to vectors, as JSON and as .npy, and what is wrong with lines, models and options.

use crate::place::{Place, Run};
use serde_json::{Value, json};
use std::fs;

const LINES: &str = "metal candle\n\nthe river below the bridge\nmetal candle\n";

fn embed(place: &Place, args: &[&str], lines: impl Into<Vec<u8>>) -> Run {
    Run::of(place.command().args(["embed", "--model", "model"]).args(args).write_stdin(lines))
}

fn numbers(row: &Value) -> Vec<f32> {
    row.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

#[test]
fn every_line_is_a_vector() {
    let place = Place::with_encoder("bert-mean");
    let run = embed(&place, &[], LINES).ok();
    let rows = run.json();
    assert_eq!(rows.len(), 4);
    assert_eq!(rows[0], rows[3], "the same line is the same vector");
    assert_ne!(rows[0], rows[2]);
    for row in &rows {
        let length: f32 = numbers(row).iter().map(|x| x * x).sum();
        assert_eq!(numbers(row).len(), 20);
        assert!((length - 1.0).abs() < 1e-5, "{row}");
    }
    assert!(
        run.stderr.starts_with("model: bert, mean pooling, normalize; 20 dimensions, at most 48 tokens, on CPU, "),
        "{run:?}"
    );
    assert!(run.stderr.contains("4 lines, "), "{run:?}");
    let f32 = embed(&place, &["--dtype", "f32"], LINES).ok();
    assert!(f32.stderr.contains("; f32 weights, products in f32\n"), "{f32:?}");
    // By the CPU: in bf16, in f16 or integers with sums that are said, or in f32.
    let bf16 = embed(&place, &["--dtype", "bf16"], LINES).ok();
    let said = bf16.stderr.lines().find_map(|line| line.split_once("; bf16 weights, products in ")).map(|(_, how)| how);
    let ways = ["bf16 with f32 sums", "f16, f32 sums of every 64", "13-bit integers, f32 sums of every 128", "f32"];
    assert!(ways.contains(&said.unwrap_or_default()), "{bf16:?}");
    // From a file with the line ends of another system it is the same, and quiet is quiet.
    fs::write(place.path("lines.txt"), LINES.replace('\n', "\r\n")).unwrap();
    let again = embed(&place, &["--quiet", "lines.txt"], "").ok();
    assert_eq!((again.stdout, again.stderr.as_str()), (run.stdout, ""));
}

#[test]
fn a_matrix_is_what_numpy_reads() {
    let place = Place::with_encoder("bert-mean");
    let rows = embed(&place, &["--dimensions", "6"], LINES).ok().json();
    let run = embed(&place, &["--dimensions", "6", "--output", "out.npy"], LINES).ok();
    assert_eq!(run.stdout, "");
    let told = embed(&place, &["--dimensions", "6", "--output", "out.npy", "--json"], LINES).ok().json();
    let done = &told[0];
    assert_eq!((told.len(), done["event"].as_str(), done["output"].as_str()), (1, Some("done"), Some("out.npy")));
    assert_eq!(
        [&done["lines"], &done["dimensions"], &done["truncated"]].map(serde_json::Value::as_u64),
        [Some(4), Some(6), Some(0)]
    );
    assert!(run.stderr.contains(&format!("4 lines, {} tokens", done["tokens"])), "{run:?}");
    let file = fs::read(place.path("out.npy")).unwrap();
    let (header, data) = file.split_at(128);
    assert!(
        header.starts_with(b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': (4, 6), }")
    );
    let found: Vec<f32> = data.chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect();
    let expected: Vec<f32> = rows.iter().flat_map(numbers).collect();
    assert_eq!(found, expected);
    // Of nothing there is a matrix without rows.
    embed(&place, &["--output", "none.npy"], "").ok();
    let file = fs::read(place.path("none.npy")).unwrap();
    assert!(file.len() == 128 && String::from_utf8_lossy(&file[10..]).contains("'shape': (0, 20)"));
    assert_eq!(embed(&place, &[], "").ok().stdout, "");
}

#[test]
fn prompts_and_long_lines() {
    let place = Place::with_encoder("bert-cls-dense");
    let one = |args: &[&str]| embed(&place, args, "copper\n").ok().stdout;
    let (plain, query, document) = (one(&[]), one(&["--query"]), one(&["--document"]));
    assert!(plain != query && query != document && plain != document);
    assert_eq!(one(&["--prompt", "query"]), query);
    assert_eq!(one(&["--prompt", "other"]), plain, "it is the default");
    let long = embed(&place, &[], format!("copper\n{}\n", "river ".repeat(300))).ok();
    assert!(long.stderr.contains("1 line cut at 50 tokens"), "{long:?}");
    assert_eq!(long.stderr.matches("cut at").count(), 1, "it is said once: {long:?}");
    // A model that has no such prompt reads what it would without, and says so.
    let said = |name: &str, arg: &str| {
        let run = embed(&Place::with_encoder(name), &[arg], "copper\n").ok();
        run.stderr.lines().find(|line| line.contains("no prompt")).map(str::to_string)
    };
    let none = |what| Some(format!("the model has no prompt for {what}: lines are read as they are"));
    assert_eq!((said("bert-mean", "--query"), said("bert-mean", "--document")), (none("queries"), none("documents")));
    assert_eq!((said("qwen3-last", "--query"), said("qwen3-last", "--document")), (None, none("documents")));
    // However many tokens are computed at once, each line has the vector that it has with the others.
    let lines = format!("{LINES}{}\n{}", "x".repeat(100_000), "river ".repeat(40));
    let rows = |args: &[&str]| embed(&place, args, lines.as_str()).ok().json();
    let (together, alone) = (rows(&["--dtype", "f32"]), rows(&["--dtype", "f32", "--batch-tokens", "1"]));
    assert_eq!((together.len(), alone.len()), (6, 6));
    for (a, b) in together.iter().zip(&alone) {
        assert!(numbers(a).iter().zip(numbers(b)).all(|(a, b)| (a - b).abs() < 1e-5), "{a} {b}");
    }
    assert_eq!(embed(&place, &["--batch-tokens", "0"], "x").status, 2);
}

#[test]
fn what_is_wrong_is_said() {
    let check = |name: &str, change: &dyn Fn(&Place), args: &[&str], lines: &[u8], error: &str, hint: &str| {
        let place = Place::with_encoder(name);
        change(&place);
        let run = embed(&place, args, lines);
        assert_eq!((run.status, run.stdout.as_str()), (2, ""), "{error}: {run:?}");
        assert!(run.stderr.contains(error) && run.stderr.contains(hint), "{error}, {hint}: {run:?}");
    };
    let nothing = |_: &Place| ();
    let latin = b"river\nfen\xeatre\n";
    check(
        "bert-mean",
        &nothing,
        &[],
        latin,
        "error: stdin, line 2: not UTF-8 at byte 4\n",
        "hint: convert the text first",
    );
    check("bert-mean", &nothing, &["--prompt", "query"], b"x", "the model has no prompt `query`", "hint: it has none");
    check("bert-cls-dense", &nothing, &["--prompt", "a"], b"x", "no prompt `a`", "hint: it has query, document, other");
    for (n, width) in [("0", 20), ("21", 20)] {
        let error = format!("cannot cut vectors of {width} dimensions to {n}");
        check("bert-mean", &nothing, &["--dimensions", n], b"x", &error, "hint: ask for 1 to 20");
    }
    check("bert-mean", &nothing, &["none.txt"], b"", "none.txt", "hint: ");
    check("bert-mean", &nothing, &["."], b"", ". is a directory", "hint: name a file of lines");
    check("bert-mean", &nothing, &["--query", "--document"], b"", "cannot be used with", "hint: ");
    let remove = |place: &Place| fs::remove_dir_all(place.path("model/1_Pooling")).unwrap();
    check(
        "bert-mean",
        &remove,
        &[],
        b"x",
        "1_Pooling/config.json: is missing",
        "hint: a module's folder is part of the model",
    );
    let unknown = |place: &Place| {
        let module = |name: &str| json!({"type": format!("sentence_transformers.models.{name}"), "path": ""});
        let modules = json!([module("Transformer"), module("WordWeights")]);
        fs::write(place.path("model/modules.json"), modules.to_string()).unwrap();
    };
    let error = "module 1 is of type `sentence_transformers.models.WordWeights`";
    check("bert-mean", &unknown, &[], b"x", error, "hint: supported are Transformer");
    let gpt = |place: &Place| place.set("model/config.json", "model_type", Some(json!("gpt2")));
    check("bert-mean", &gpt, &[], b"x", "`model_type` is `gpt2`, supported are bert, ", "hint: convert the model");
    let relu = |place: &Place| place.set("model/config.json", "hidden_act", Some(json!("relu")));
    check("bert-mean", &relu, &[], b"x", "`hidden_act` is \"relu\", expected \"gelu\"", "hint: ");
    // What is not supported is not a damaged file.
    let length = |place: &Place| place.set("model/sentence_bert_config.json", "query_length", Some(json!(6)));
    let error = "sentence_bert_config.json: `query_length` is 6, expected nothing: it is not supported";
    check("bert-mean", &length, &[], b"x", error, "hint: supported are max_seq_length, do_lower_case");
    let text = |place: &Place| fs::write(place.path("model/modules.json"), "[").unwrap();
    check("bert-mean", &text, &[], b"x", "modules.json: is no JSON: ", "hint: it may be incomplete, damaged or edited");
    // The tokenizer of another model.
    let words = |place: &Place| {
        let from = Place::with_encoder("modernbert-weighted");
        fs::copy(from.path("model/tokenizer.json"), place.path("model/tokenizer.json")).unwrap();
    };
    let (lines, place) = (b"\nmountain violin\n", " is not below the model's vocabulary of 150");
    check("bert-mean", &words, &[], lines, "error: stdin, line 2: token id ", place);
    check("bert-mean", &words, &[], lines, place, "hint: the tokenizer is of another model");
    let place = Place::with_encoder("bert-mean");
    embed(&place, &["--output", "out.npy"], *latin);
    assert!(!place.path("out.npy").exists(), "nothing is half written");
    let huge = [b"river\n".to_vec(), vec![b'x'; (4 << 20) + 1]].concat();
    check("bert-mean", &nothing, &["--quiet"], &huge, "stdin, line 2: longer than 4 MiB", "hint: cut it into parts");
}

/// A file is not read and written at once, by whatever name; what is no file is written to.
#[test]
fn an_output_that_is_the_input() {
    let place = Place::with_encoder("bert-mean");
    let file = place.path("lines.txt");
    fs::write(&file, LINES).unwrap();
    let refused = |run: Run, name: &str| {
        let said = format!("error: {name} is the input\nhint: name another file with --output\n");
        assert!(run.status == 2 && run.stderr.ends_with(&said), "{run:?}");
        assert_eq!(fs::read_to_string(&file).unwrap(), LINES);
    };
    refused(embed(&place, &["lines.txt", "--output", "./lines.txt"], ""), "lines.txt");
    let mut stdin = std::process::Command::new(assert_cmd::cargo::cargo_bin("metal-candle"));
    stdin.current_dir(place.path(".")).args("embed --model model - --output lines.txt".split(' '));
    let run = stdin.stdin(fs::File::open(&file).unwrap()).output().unwrap();
    assert!(run.status.code() == Some(2) && String::from_utf8_lossy(&run.stderr).contains("stdin is the input"));
    assert_eq!(fs::read_to_string(&file).unwrap(), LINES);
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("lines.txt", place.path("link")).unwrap();
        refused(embed(&place, &["lines.txt", "--output", "link"], ""), "lines.txt");
        std::os::unix::fs::symlink("/dev/null", place.path("null")).unwrap();
        embed(&place, &["lines.txt", "--output", "null", "--quiet"], "").ok();
        assert!(place.path("null").is_symlink());
    }
}
