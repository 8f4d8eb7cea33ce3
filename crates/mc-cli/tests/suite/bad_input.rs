//! Everything wrong that a person can hand over: one line that names file and field, a hint, exit status 2, and nothing
//! written.

use crate::place::{DATA, FINETUNE, Place, Run};
use serde_json::{Value, json};
use std::fs;

const GENERATE: &str = "generate --model model --prompt sort";
const EVAL: &str = "eval --model model --data data.jsonl";

/// What is broken, what is called, what the error line says.
type Case<'a> = (&'a str, Box<dyn Fn(&Place)>, String, &'a str);

fn nothing() -> Box<dyn Fn(&Place)> {
    Box::new(|_| {})
}

fn set(file: &'static str, field: &'static str, value: Value) -> Box<dyn Fn(&Place)> {
    Box::new(move |place| place.set(file, field, Some(value.clone())))
}

fn unset(file: &'static str, field: &'static str) -> Box<dyn Fn(&Place)> {
    Box::new(move |place| place.set(file, field, None))
}

fn config(field: &'static str, value: Value) -> Box<dyn Fn(&Place)> {
    set("model/config.json", field, value)
}

fn write(file: &'static str, content: impl AsRef<[u8]> + 'static) -> Box<dyn Fn(&Place)> {
    Box::new(move |place| {
        fs::create_dir_all(place.path(file).parent().unwrap()).unwrap();
        fs::write(place.path(file), &content).unwrap();
    })
}

/// A token that the tokenizer has and the embedding has not.
fn added_token() -> Box<dyn Fn(&Place)> {
    Box::new(|place| {
        let file = place.path("model/tokenizer.json");
        let mut json: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        let mut token = json["added_tokens"][0].clone();
        (token["id"], token["content"]) = (json!(2048), json!("pwd"));
        json["added_tokens"].as_array_mut().unwrap().push(token);
        fs::write(file, json.to_string()).unwrap();
    })
}

#[cfg(unix)]
fn link(to: &'static str, name: &'static str) -> Box<dyn Fn(&Place)> {
    Box::new(move |place| std::os::unix::fs::symlink(to, place.path(name)).unwrap())
}

fn remove(file: &'static str) -> Box<dyn Fn(&Place)> {
    Box::new(move |place| fs::remove_file(place.path(file)).unwrap())
}

/// Changes the bytes of a file.
fn edit(file: &'static str, change: fn(&mut Vec<u8>)) -> Box<dyn Fn(&Place)> {
    Box::new(move |place| {
        let mut bytes = fs::read(place.path(file)).unwrap();
        change(&mut bytes);
        fs::write(place.path(file), bytes).unwrap();
    })
}

/// Replaces a text of the same length.
fn replace(file: &'static str, from: &'static str, to: &'static str) -> Box<dyn Fn(&Place)> {
    assert_eq!(from.len(), to.len());
    Box::new(move |place| {
        let mut bytes = fs::read(place.path(file)).unwrap();
        let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
        bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
        fs::write(place.path(file), bytes).unwrap();
    })
}

/// Runs every case and tells all that fail, not only the first.
fn check(cases: Vec<Case>) {
    let failures: Vec<_> =
        cases.into_iter().filter_map(|case| fault(&case).map(|f| format!("{}: {f}", case.0))).collect();
    assert!(failures.is_empty(), "{} cases:\n\n{}", failures.len(), failures.join("\n\n"));
}

fn fault((_, spoil, args, message): &Case) -> Option<String> {
    let place = if args.contains("adapter") { Place::with_adapter() } else { Place::new() };
    spoil(&place);
    let before = place.files();
    let run = place.run(args);
    fault_of(&run, message).or_else(|| {
        let after = place.files();
        (before != after).then(|| format!("files were written: {after:?}"))
    })
}

/// What is not as it should be in a run that the caller got wrong.
fn fault_of(run: &Run, message: &str) -> Option<String> {
    let lines: Vec<_> = run.stderr.lines().collect();
    let start = |with: &str| lines.iter().filter(|line| line.starts_with(with)).count();
    let right = match lines.as_slice() {
        [.., error, hint] => {
            error.strip_prefix("error: ").is_some_and(|e| e.contains(message) && !e.ends_with('.') && e.len() < 400)
                && hint.strip_prefix("hint: ").is_some_and(|h| h.len() > 8 && !h.ends_with('.'))
        }
        _ => false,
    };
    let right = right && start("error:") == 1 && start("hint:") == 1 && !run.stderr.contains("panicked");
    (run.status != 2 || !right || !run.stdout.is_empty())
        .then(|| format!("expected `{message}`, got status {}\n{}{}", run.status, run.stdout, run.stderr))
}

#[test]
fn options() {
    let call = |args: &str, message: &'static str| -> Case { (message, nothing(), args.into(), message) };
    let train = |args: &str, message: &'static str| {
        call(&format!("finetune --model model --data data.jsonl --output out {args}"), message)
    };
    let generate = |args: &str, message: &'static str| call(&format!("{GENERATE} {args}"), message);
    let bench = |args: &str, message: &'static str| call(&format!("bench --model model {args}"), message);
    check(vec![
        call("finetune --stepss 3", "unexpected argument '--stepss'"),
        call("tune", "unrecognized subcommand 'tune'"),
        call("generate", "required arguments were not provided: --prompt"),
        call("inspect --threads 0", "'0' for '--threads <"),
        call("embed --batch-tokens 0", "'0' for '--batch-tokens <"),
        call("inspect --threads 100000", "'100000' for '--threads <"),
        call("inspect --dtype f8", "'f8' for '--dtype <"),
        call("eval --device gpu", "unknown device `gpu`"),
        call("eval --device cuda:x", "unknown device `cuda:x`"),
        call("eval --device cpu:3", "unknown device `cpu:3`"),
        call("eval --quiet -v", "'--quiet' cannot be used with '--verbose"),
        // Before anything is looked for.
        call("finetune --model owner/name --data no --target (q_proj", "`--target` is no regular expression"),
        train("--batch-size 99999999999999999999999", "the number is too large"),
        train("--max-seq-len 1000000", "`--max-seq-len` is 1000000, expected at most"),
        train("--rank 0", "`--rank` is 0, expected 1 to 65536"),
        train("--rank -1", "'-1' for '--rank <"),
        train("--rank 99999999", "`--rank` is 99999999, expected 1 to 65536"),
        train("--rank two", "'two' for '--rank <R>': expected a whole number, 0 or more"),
        train("--lr two", "'two' for '--lr <LR>': expected a number"),
        train("--alpha 0", "`--alpha` is 0"),
        train("--alpha inf", "`--alpha` is inf"),
        train("--dropout 1", "`--dropout` is 1, expected at least 0 and below 1"),
        train("--dropout -0.1", "`--dropout` is -0.1"),
        train("--lr -1", "`--lr` is -1"),
        train("--lr nan", "`--lr` is NaN"),
        train("--lr inf", "`--lr` is inf"),
        train("--epochs 0", "`--epochs` is 0, expected at least 1"),
        train("--steps 0", "`--steps` is 0, expected at least 1"),
        train("--steps 1 --epochs 1", "'--steps <N>' cannot be used with '--epochs <N>'"),
        train("--batch-size 0", "`--batch-size` is 0, expected at least 1"),
        train("--grad-accum 0", "`--grad-accum` is 0, expected at least 1"),
        train("--eval-every 0", "`--eval-every` is 0, expected at least 1"),
        train("--save-every 0", "`--save-every` is 0, expected at least 1"),
        train("--max-grad-norm -1", "`--max-grad-norm` is -1"),
        train("--max-grad-norm nan", "`--max-grad-norm` is NaN"),
        train("--weight-decay -1", "`--weight-decay` is -1"),
        train("--steps 3 --warmup 10", "`--warmup` is 10"),
        train("--schedule sawtooth", "'sawtooth' for '--schedule <"),
        train("--max-seq-len 1", "`--max-seq-len` is 1, expected at least 2"),
        train("--seed -1", "'-1' for '--seed <"),
        train("--target foo_proj", "`--target`: `foo_proj` matches none of the model's projections"),
        train("--target q_proj,,v_proj", "`--target` has an empty name"),
        train("--target ''", "`--target` has an empty name"),
        train("--target all-linear,q_proj", "`--target` combines"),
        train("--target (q_proj", "`--target`"),
        train("--target lm_head", "`--target`"),
        train("--mask-prompt=perhaps", "'perhaps' for '--mask-prompt"),
        train("--resume", "out/run/state.safetensors: no such file"),
        call("finetune --resume", "--resume does not say which run"),
        call("finetune --model model", "no --data"),
        call("eval --model model", "no --data"),
        call("finetune --init-adapter adapter --rank 4", "'--init-adapter <DIR>' cannot be used with '--rank"),
        generate("--temp nan", "`--temp` is NaN"),
        generate("--temp -1", "`--temp` is -1"),
        generate("--top-p 2 --temp 1", "`--top-p` is 2"),
        generate("--top-p 0.9", "--temp 0"),
        generate("--top-k 0 --temp 1", "`--top-k` is 0"),
        generate("--min-p 1.5 --temp 1", "`--min-p` is 1.5"),
        generate("--repetition-penalty 1e300", "`--repetition-penalty` is 1e300"),
        generate("--repetition-penalty 0", "`--repetition-penalty` is 0"),
        generate("--max-tokens 0", "`--max-tokens` is 0"),
        generate("--stop ''", "`--stop` is an empty text"),
        call("eval --model model --data data.jsonl --batch-size 0", "'0' for '--batch-size <"),
        call("eval --model model --data data.jsonl --max-seq-len 0", "`--max-seq-len` is 0"),
        bench("--prompt 0", "'0' for '--prompt <"),
        bench("--prompt -1", "unexpected argument '-1'"),
        bench("--gen 0", "'0' for '--gen <"),
        bench("--gen 99999999999", "99999999999 is not in"),
        bench("--repeat 0", "'0' for '--repeat <"),
        bench("--prompt 1000 --gen 100", "`--prompt` and `--gen` make 1099 tokens to read, expected at most 1024"),
        bench("--prompt 4294967295 --gen 4294967295", "expected at most 1024"),
        bench("--train --batch 0", "'0' for '--batch <"),
        bench("--train --batch 100000", "100000"),
        bench("--train --seq 0", "'0' for '--seq <"),
        bench("--train --seq 1025", "`--seq` is 1025 tokens to read, expected at most 1024"),
        bench("--train --rank 0", "`--rank` is 0, expected 1 to 65536"),
        bench("--train --target foo_proj", "`--target`: `foo_proj` matches none of the model's projections"),
        bench("--train --target (q_proj", "`--target` is no regular expression"),
        bench("--train --prompt 8", "'--train' cannot be used with '--prompt <N>'"),
        bench("--train --gen 8", "'--train' cannot be used with '--gen <N>'"),
        bench("--train --without-cache", "'--train' cannot be used with '--without-cache'"),
        bench("--batch 2", "required arguments were not provided: --train"),
        bench("--seq 2", "required arguments were not provided: --train"),
        bench("--rank 2", "required arguments were not provided: --train"),
        bench("--target q_proj", "required arguments were not provided: --train"),
        bench("--grad-checkpoint", "required arguments were not provided: --train"),
        call("bench --model nowhere", "no directory `nowhere`"),
    ]);
}

#[test]
fn names_of_models_and_outputs() {
    const EMBEDDING: &str = "parts: no config.json, but modules.json: an embedding model";
    let call = |name, spoil, args: &str, message| -> Case { (name, spoil, args.into(), message) };
    check(vec![
        call("no such directory", nothing(), "generate --prompt a --model nonexistent", "no directory `nonexistent`"),
        call("a path that is not there", nothing(), "inspect models/that/is/not/there", "models/that/is/not/there"),
        call("gguf", write("file.gguf", "GGUF"), "generate --prompt a --model file.gguf", "file.gguf: GGUF models"),
        call("a file", nothing(), "inspect model/config.json", "model/config.json is a file"),
        call("offline", nothing(), "inspect owner/name", "owner/name"),
        call("an empty directory", write("empty/readme", ""), "inspect empty", "empty: no config.json"),
        call("modules as model", write("parts/modules.json", "[]"), "generate --prompt a --model parts", EMBEDDING),
        call("modules measured", write("parts/modules.json", "[]"), "bench --model parts", EMBEDDING),
        call("modules inspected", write("parts/modules.json", "[]"), "inspect parts", EMBEDDING),
        call(
            "modules finetuned",
            write("parts/modules.json", "[]"),
            "finetune --model parts --data data.jsonl --output out",
            EMBEDDING,
        ),
        call("an adapter as model", nothing(), "generate --prompt a --model adapter", "adapter: no config.json"),
        call("a model as adapter", nothing(), &format!("{GENERATE} --adapter model"), "model: no adapter_config.json"),
        call("no such adapter", nothing(), &format!("{GENERATE} --adapter adapter2"), "adapter2: no such directory"),
        call("output holds an adapter", nothing(), "finetune --output adapter", "adapter holds an adapter already"),
        call(
            "a file as adapter",
            nothing(),
            &format!("{EVAL} --adapter adapter/adapter_config.json"),
            "adapter_config.json is a file",
        ),
        #[cfg(unix)]
        call("a link to itself", link("loop", "loop"), "inspect loop", "loop is a link that leads nowhere"),
        #[cfg(unix)]
        call(
            "output is a link to nothing",
            link("no/where", "out"),
            "finetune --output out/new",
            "out is not a directory",
        ),
        call("output is a file", nothing(), "finetune --output data.jsonl", "data.jsonl is not a directory"),
        call(
            "output is below a file",
            nothing(),
            "finetune --output data.jsonl/out --steps 1",
            "data.jsonl is not a directory",
        ),
        call("no config file", nothing(), "finetune --config no.toml", "no.toml: No such file"),
        call(
            "unknown key",
            write("a.toml", "ranks = 3"),
            "finetune --config a.toml",
            "a.toml: `ranks` is not an option",
        ),
        call(
            "wrong type",
            write("a.toml", "rank = \"3\""),
            "finetune --config a.toml",
            "a.toml: `rank`: invalid type: string \"3\", expected a whole number",
        ),
        call("negative", write("a.toml", "rank = -3"), "finetune --config a.toml", "a.toml: `rank`: invalid value"),
        call("zero", write("a.toml", "batch_size = 0"), "finetune --config a.toml", "a.toml: `--batch-size` is 0"),
        call("not a number", write("a.toml", "lr = nan"), "finetune --config a.toml", "a.toml: `--lr` is NaN"),
        call("not TOML", write("a.toml", "rank 3"), "finetune --config a.toml", "a.toml: "),
        call("not UTF-8", write("a.toml", [b'r', 0xff]), "finetune --config a.toml", "a.toml: "),
        call(
            "one option twice",
            write("a.toml", "batch-size = 3\nbatch_size = 4"),
            "finetune --config a.toml",
            "`batch_size` and `batch-size` are one option",
        ),
        call(
            "a rank for an adapter that has one",
            write("a.toml", "rank = 3"),
            "finetune --config a.toml --init-adapter adapter",
            "--rank cannot be used with --init-adapter adapter",
        ),
        call("both", write("a.toml", "steps = 3\nepochs = 1"), "finetune --config a.toml", "exclude each other"),
        call("a schedule", write("a.toml", "schedule = \"saw\""), "finetune --config a.toml", "a.toml: `schedule`"),
    ]);
}

#[test]
fn model_configurations() {
    let case = |spoil, message: &'static str| -> Case { (message, spoil, GENERATE.into(), message) };
    check(vec![
        case(write("model/config.json", ""), "model/config.json: "),
        case(write("model/config.json", "[]"), "model/config.json: not a JSON object"),
        case(write("model/config.json", "{\"model_type\": \"qwen2\","), "model/config.json: EOF"),
        case(unset("model/config.json", "model_type"), "model/config.json: `model_type`"),
        case(config("model_type", json!("gpt5")), "model/config.json: `model_type` is `gpt5`"),
        case(config("model_type", json!(3)), "model/config.json: `model_type` is 3"),
        case(config("hidden_size", json!(0)), "model/config.json: `hidden_size` is 0"),
        case(config("hidden_size", json!(-192)), "model/config.json: `hidden_size` is -192"),
        case(config("hidden_size", json!(1_000_000_000)), "model/config.json: `hidden_size` is 1000000000"),
        case(config("hidden_size", json!("192")), "model/config.json: `hidden_size` is \"192\""),
        case(config("hidden_size", json!(192.5)), "model/config.json: `hidden_size` is 192.5"),
        case(unset("model/config.json", "hidden_size"), "model/config.json: `hidden_size` is missing"),
        case(config("hidden_size", json!(186)), "model/config.json: `head_dim` is 31"),
        case(config("hidden_size", json!(384)), "model.safetensors: tensor `model."),
        case(config("vocab_size", json!(0)), "model/config.json: `vocab_size` is 0"),
        case(config("vocab_size", json!(1_000_000_000)), "model/config.json: `vocab_size` is 1000000000"),
        case(
            config("vocab_size", json!(4096)),
            "tensor `model.embed_tokens.weight` is (2048, 192), expected (4096, 192)",
        ),
        case(config("num_hidden_layers", json!(0)), "model/config.json: `num_hidden_layers` is 0"),
        case(config("num_hidden_layers", json!(1_000_000_000)), "model/config.json: `num_hidden_layers` is 1000000000"),
        case(config("num_hidden_layers", json!(5)), "no tensor `model.layers.4."),
        case(config("num_attention_heads", json!(0)), "model/config.json: `num_attention_heads` is 0"),
        case(config("num_attention_heads", json!(7)), "model/config.json: `"),
        case(config("num_key_value_heads", json!(4)), "model/config.json: `num_key_value_heads`"),
        case(config("num_key_value_heads", json!(0)), "model/config.json: `num_key_value_heads` is 0"),
        case(config("head_dim", json!(31)), "model/config.json: `head_dim` is 31"),
        case(config("intermediate_size", json!(0)), "model/config.json: `intermediate_size` is 0"),
        case(config("intermediate_size", json!(383)), "expected (383, 192)"),
        case(config("max_position_embeddings", json!(0)), "model/config.json: `max_position_embeddings` is 0"),
        case(config("rms_norm_eps", json!(-1)), "model/config.json: `rms_norm_eps` is -1"),
        case(config("hidden_act", json!("gelu")), "model/config.json: `hidden_act` is \"gelu\""),
        case(config("tie_word_embeddings", json!("yes")), "model/config.json: `tie_word_embeddings`"),
        case(config("tie_word_embeddings", json!(false)), "model.safetensors: no tensor `lm_head.weight`"),
        case(config("rope_parameters", json!({"rope_type": "yarn"})), "model/config.json: `rope_type` is \"yarn\""),
        case(config("rope_parameters", json!({"rope_theta": 0})), "model/config.json: `rope_theta` is 0"),
        case(config("rope_parameters", json!({"rope_type": "linear"})), "model/config.json: `factor` is missing"),
        case(write("model/generation_config.json", "{"), "model/generation_config.json: EOF"),
        case(set("model/generation_config.json", "eos_token_id", json!("x")), "`eos_token_id` is \"x\""),
        case(set("model/generation_config.json", "eos_token_id", json!([-1])), "`eos_token_id` is [-1]"),
        case(
            set("model/generation_config.json", "eos_token_id", json!([0, 99999])),
            "model/generation_config.json: `eos_token_id` is 99999, expected ids below the model's vocabulary of 2048",
        ),
        (
            "an end of text that nobody can learn",
            set("model/generation_config.json", "eos_token_id", json!(2048)),
            FINETUNE.into(),
            "`eos_token_id` is 2048",
        ),
    ]);
}

#[test]
fn weights() {
    const FILE: &str = "model/model.safetensors";
    let case = |name, spoil, message| -> Case { (name, spoil, GENERATE.into(), message) };
    let index = |shard: &str| json!({"weight_map": {"model.norm.weight": shard}}).to_string();
    let sharded = |text: String| -> Box<dyn Fn(&Place)> {
        Box::new(move |place| {
            fs::remove_file(place.path(FILE)).unwrap();
            fs::write(place.path("model/model.safetensors.index.json"), &text).unwrap();
        })
    };
    check(vec![
        case("none", remove(FILE), "model: no model.safetensors"),
        case("no bytes", write(FILE, ""), "model/model.safetensors: empty file"),
        case("few bytes", write(FILE, "abc"), "model/model.safetensors: 3 bytes are too few"),
        case("cut in the header", edit(FILE, |b| b.truncate(100)), "model/model.safetensors: a header of"),
        case("cut in the data", edit(FILE, |b| b.truncate(b.len() - 1)), "model/model.safetensors: "),
        case("bytes added", edit(FILE, |b| b.push(0)), "model/model.safetensors: "),
        case("header too long", edit(FILE, |b| b[..8].fill(0xff)), "model/model.safetensors: a header of"),
        case(
            "header too short",
            edit(FILE, |b| b[..8].copy_from_slice(&9u64.to_le_bytes())),
            "model.safetensors: header: ",
        ),
        case("header not JSON", edit(FILE, |b| b[8] = b'x'), "model/model.safetensors: header: "),
        case("header not UTF-8", edit(FILE, |b| b[10] = 0xff), "model/model.safetensors: header: "),
        case(
            "a tensor renamed",
            replace(FILE, "model.norm.weight", "model.morn.weight"),
            "no tensor `model.norm.weight`",
        ),
        case("another dtype", replace(FILE, "\"BF16\"", "\"F32\" "), "model/model.safetensors: header: "),
        case("integers", replace(FILE, "\"BF16\"", "\"I16\" "), "has dtype I16"),
        case(
            "a directory",
            Box::new(|place| {
                fs::remove_file(place.path(FILE)).unwrap();
                fs::create_dir(place.path(FILE)).unwrap();
            }),
            "model/model.safetensors: ",
        ),
        case(
            "pickled",
            Box::new(|place| {
                fs::rename(place.path(FILE), place.path("model/pytorch_model.bin")).unwrap();
            }),
            "model: no model.safetensors",
        ),
        case("a shard missing", sharded(index("a.safetensors")), "shard a.safetensors is listed but not there"),
        case("a shard outside", sharded(index("../data.jsonl")), "shard `../data.jsonl`"),
        case("a shard at the root", sharded(index("/etc/passwd")), "shard `/etc/passwd`"),
        case("no shards", sharded("{}".into()), "index.json: missing field `weight_map`"),
        case("an empty map", sharded("{\"weight_map\": {}}".into()), "index.json: `weight_map` is empty"),
    ]);
}

#[test]
fn tokenizers_and_prompts() {
    let case = |name, spoil, message| -> Case { (name, spoil, GENERATE.into(), message) };
    let chat = |name, template: &str, message| -> Case {
        let spoil = set("model/tokenizer_config.json", "chat_template", json!(template));
        (name, spoil, format!("{GENERATE} --chat"), message)
    };
    check(vec![
        case("none", remove("model/tokenizer.json"), "model/tokenizer.json: No such file"),
        case("empty", write("model/tokenizer.json", ""), "model/tokenizer.json: "),
        case("cut", edit("model/tokenizer.json", |b| b.truncate(1000)), "model/tokenizer.json: "),
        case("not a tokenizer", write("model/tokenizer.json", "{}"), "model/tokenizer.json: "),
        case(
            "one that cannot work",
            set("model/tokenizer.json", "pre_tokenizer", json!({"type": "FixedLength", "length": 0})),
            "model/tokenizer.json: cannot encode: the tokenizer cannot work as it is written: ",
        ),
        case("no JSON", write("model/tokenizer_config.json", "x"), "model/tokenizer_config.json: "),
        case("a wrong type", set("model/tokenizer_config.json", "eos_token", json!(3)), "`eos_token` is 3"),
        case("not UTF-8", write("model/chat_template.jinja", [0xff, 0xfe]), "model/chat_template.jinja: not UTF-8"),
        chat("a template that is cut", "{% for m in messages %}", "tokenizer_config.json"),
        chat("a template that refuses", "{{ raise_exception('no users') }}", "no users"),
        (
            "no template",
            unset("model/tokenizer_config.json", "chat_template"),
            format!("{GENERATE} --chat"),
            "no chat template",
        ),
        (
            "a long prompt",
            nothing(),
            format!("generate --model model --prompt {}", "sort,".repeat(2000)),
            "expected at most 1024",
        ),
        (
            "an empty prompt",
            unset("model/tokenizer_config.json", "bos_token"),
            "generate --model model --prompt ''".into(),
            "the prompt is empty",
        ),
    ]);
    let place = Place::new();
    let run = Run::of(place.command().args(["generate", "--prompt", "-"]).write_stdin(vec![0xff, 0xfe]));
    assert_eq!(fault_of(&run, "stdin: the prompt is not UTF-8"), None);
}

#[test]
fn data() {
    let case = |content: &'static [u8], message: &'static str| -> Case {
        let name = std::str::from_utf8(content).unwrap_or("bytes");
        (name, write("data.jsonl", content), FINETUNE.into(), message)
    };
    let directory = "finetune --model model --data dir --output out";
    check(vec![
        case(b"", "data.jsonl: there is no record"),
        case(b"\n\n  \n", "data.jsonl: there is no record"),
        case(b"{}", "data.jsonl:1: "),
        case(b"[1]", "data.jsonl:1: "),
        case(b"hello", "data.jsonl:1: "),
        case(b"{\"text\": \"a b\"}\n{\"text\": \"a", "data.jsonl:2: "),
        case(b"{\"text\": 3}", "data.jsonl:1: `text` is"),
        case(b"{\"text\": null}", "data.jsonl:1: `text` is"),
        case(b"{\"txt\": \"a\"}", "data.jsonl:1: "),
        case(b"{\"prompt\": \"a\"}", "data.jsonl:1: "),
        case(b"{\"prompt\": \"a\", \"completion\": [1]}", "data.jsonl:1: `completion` is"),
        case(b"{\"text\": \"a b\"}\n{\"prompt\": \"a\", \"completion\": \"b\"}", "data.jsonl:2: "),
        case(b"{\"prompt\": \"a\", \"completion\": \"b\"}\n\n{\"text\": \"a b\"}", "data.jsonl:3: "),
        case(b"{\"text\": \"a\xff b\"}", "data.jsonl:1: not UTF-8 at byte 12"),
        case(b"{\"messages\": []}", "data.jsonl:1: `messages`"),
        case(b"{\"messages\": \"hi\"}", "data.jsonl:1: `messages`"),
        case(b"{\"messages\": [{\"content\": \"hi\"}]}", "data.jsonl:1: `messages"),
        case(b"{\"messages\": [{\"role\": 1, \"content\": \"hi\"}]}", "data.jsonl:1: `messages"),
        case(b"\x1f\x8b\x08\x00binary", "data.jsonl:1: not UTF-8"),
        ("a token that the model lacks", added_token(), FINETUNE.into(), "data.jsonl: it has token id 2048, expected"),
        ("the same in an evaluation", added_token(), EVAL.into(), "data.jsonl: it has token id 2048, expected"),
        ("none", nothing(), "finetune --model model --data no.jsonl --output out".into(), "no.jsonl: "),
        ("a directory without train.jsonl", write("dir/valid.jsonl", DATA), directory.into(), "dir: no train.jsonl"),
        (
            "held-out data that is empty",
            Box::new(|place| {
                write("dir/train.jsonl", DATA)(place);
                write("dir/valid.jsonl", "")(place);
            }),
            directory.into(),
            "dir/valid.jsonl: there is no record",
        ),
        ("evaluation on a directory", write("dir/train.jsonl", DATA), "eval --model model --data dir".into(), "dir: "),
        ("evaluation on nothing", write("data.jsonl", ""), EVAL.into(), "data.jsonl: there is no record"),
        (
            "messages without a template",
            Box::new(|place| {
                place.set("model/tokenizer_config.json", "chat_template", None);
                write("data.jsonl", "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}")(place);
            }),
            FINETUNE.into(),
            "data.jsonl:1: ",
        ),
        (
            "prompts that fill the length",
            nothing(),
            format!("{FINETUNE} --max-seq-len 2 --mask-prompt"),
            "data.jsonl: no token",
        ),
    ]);
}

#[test]
fn adapters() {
    const CONFIG: &str = "adapter/adapter_config.json";
    const FILE: &str = "adapter/adapter_model.safetensors";
    let case = |name, spoil, message| -> Case { (name, spoil, format!("{EVAL} --adapter adapter"), message) };
    check(vec![
        case("no weights", remove(FILE), "adapter: no adapter_model.safetensors"),
        case("cut weights", edit(FILE, |b| b.truncate(b.len() / 2)), "adapter/adapter_model.safetensors: "),
        case("no JSON", write(CONFIG, "{"), "adapter/adapter_config.json: EOF"),
        case("rank 0", set(CONFIG, "r", json!(0)), "adapter/adapter_config.json: `r` is 0"),
        case("rank -1", set(CONFIG, "r", json!(-1)), "adapter/adapter_config.json: "),
        case("a huge rank", set(CONFIG, "r", json!(1_000_000_000)), "adapter/adapter_config.json: `r` is 1000000000"),
        case("another rank", set(CONFIG, "r", json!(4)), "is (2, 192), expected (4, 192)"),
        case("alpha of another type", set(CONFIG, "lora_alpha", json!("16")), "adapter/adapter_config.json: "),
        case("another kind", set(CONFIG, "peft_type", json!("IA3")), "adapter/adapter_config.json: `peft_type` is"),
        case(
            "unknown target",
            set(CONFIG, "target_modules", json!(["foo"])),
            "adapter_config.json: `target_modules`: `foo`",
        ),
        case("a wrong pattern", set(CONFIG, "target_modules", json!("(q")), "adapter_config.json: `target_modules`"),
        case(
            "fewer targets",
            set(CONFIG, "target_modules", json!(["q_proj"])),
            "adapter_model.safetensors: unexpected tensor",
        ),
        case("DoRA without magnitudes", set(CONFIG, "use_dora", json!(true)), "lora_magnitude_vector"),
        case("saved modules", set(CONFIG, "modules_to_save", json!(["lm_head"])), "`modules_to_save`: `lm_head`"),
        case(
            "not finite",
            edit(FILE, |b| {
                let n = b.len();
                b[n - 4..].fill(0xff);
            }),
            "values that are not finite",
        ),
        case("a tensor renamed", replace(FILE, "q_proj.lora_A", "x_proj.lora_A"), "no tensor `base_model."),
        case(
            "another model",
            Box::new(|place| {
                // The head's width is free of the others: q and o change, and the model's weights with them.
                place.set("adapter/adapter_config.json", "base_model_name_or_path", Some(json!("owner/other")));
                replace(FILE, "[2,192]", "[192,2]")(place);
            }),
            "is (192, 2), expected (2, 192)",
        ),
        (
            "a start that does not fit",
            set(CONFIG, "r", json!(3)),
            "finetune --model model --data data.jsonl --output out --init-adapter adapter".into(),
            "expected (3, 192)",
        ),
        ("inspected without weights", remove(FILE), "inspect adapter".into(), "adapter: no adapter_model.safetensors"),
    ]);
}

/// What the caller cannot mend is no wrong call.
#[test]
fn a_hub_that_cannot_be_reached_is_a_failure() {
    let place = Place::new();
    for name in ["owner/name", "name"] {
        let mut command = place.command();
        // Nothing listens on this port.
        command.env_remove("HF_HUB_OFFLINE").env("HF_ENDPOINT", "http://127.0.0.1:1").args(["inspect", name]);
        let run = Run::of(&mut command);
        assert_eq!(run.status, 1, "{}", run.stderr);
        assert!(run.stderr.contains("cannot reach http://127.0.0.1:1"), "{}", run.stderr);
        assert!(run.stderr.contains("hint: check the network"), "{}", run.stderr);
    }
}

#[cfg(unix)]
#[test]
fn arguments_that_are_no_utf8() {
    use std::os::unix::ffi::OsStrExt;
    let place = Place::new();
    let odd = std::ffi::OsStr::from_bytes(b"\xff");
    for args in
        [&[odd][..], &["inspect".as_ref(), "--threads".as_ref(), odd], &["inspect".as_ref(), "--device".as_ref(), odd]]
    {
        let run = Run::of(place.command().args(args));
        assert_eq!(run.status, 2, "{args:?}: {}", run.stderr);
        let lines: Vec<_> = run.stderr.lines().collect();
        assert!(lines[0].starts_with("error: ") && lines[1].starts_with("hint: "), "{args:?}: {}", run.stderr);
    }
}

#[test]
fn a_filter_of_the_log_that_is_none_is_told() {
    let place = Place::new();
    let run = Run::of(place.command().env("METAL_CANDLE_LOG", "mc_train=loud").args(["inspect", "model"])).ok();
    assert!(run.stderr.contains("METAL_CANDLE_LOG is left out"), "{}", run.stderr);
    assert_eq!(Run::of(place.command().args(["inspect", "model"])).ok().stderr, "");
    // The hint is that of the command, and not of what one of its arguments is called.
    let run = place.run("eval --adapter finetune --bogus");
    assert!(run.stderr.contains("metal-candle eval --help"), "{}", run.stderr);
}

#[test]
fn a_prompt_without_end() {
    let place = Place::new();
    let mut command = place.command();
    command.args(["generate", "--model", "model", "--prompt", "-"]).write_stdin(vec![b'a'; (64 << 20) + 1]);
    let run = Run::of(&mut command);
    assert_eq!(run.status, 2, "{}", run.stderr);
    assert!(run.stderr.starts_with("error: stdin: the prompt is longer than 64 MiB\nhint: "), "{}", run.stderr);
}

/// What makes vectors makes no text; the hint says what reads it.
#[test]
fn an_encoder_is_sent_to_the_commands_that_read_it() {
    let place = Place::with_encoder("bert-mean");
    for call in ["inspect model", "generate --model model --prompt x"] {
        let run = place.run(call);
        assert_eq!(run.status, 2, "{}", run.stderr);
        assert!(
            run.stderr.contains("hint: it makes vectors of texts and no text: metal-candle embed"),
            "{}",
            run.stderr
        );
    }
}
