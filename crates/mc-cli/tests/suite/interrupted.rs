//! Ctrl-C and SIGTERM: the run ends after its step, its state is saved, and it can go on.

use crate::place::{FINETUNE, Place, words};
use serde_json::Value;
use std::{
    io::{BufRead, BufReader, Read},
    process::{Command, Stdio},
};

#[test]
fn an_interrupted_run_is_saved_and_goes_on() {
    let stderr = ends_and_goes_on("-INT");
    assert!(stderr.contains("stopping after this step"), "{stderr}");
}

/// As a container or a queue of jobs ends it.
#[test]
fn a_terminated_run_is_saved_and_goes_on() {
    ends_and_goes_on("-TERM");
}

/// What a run says that gets this signal.
fn ends_and_goes_on(signal: &str) -> String {
    let place = Place::new();
    let mut command = Command::new(assert_cmd::cargo::cargo_bin("metal-candle"));
    command.current_dir(place.path("")).args(words(FINETUNE)).args([
        "--steps",
        "1000000",
        "--schedule",
        "constant",
        "--json",
    ]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    // The handler is there before the first step.
    let first = lines.find(|line| line.contains("\"event\":\"step\"")).unwrap();
    assert!(first.contains("\"step\":1,"), "{first}");
    let id = child.id().to_string();
    // `timeout` sends SIGTERM to the process and to its group.
    let twice = (signal == "-TERM").then_some(&id);
    assert!(Command::new("kill").arg(signal).arg(&id).args(twice).status().unwrap().success());
    let rest: Vec<Value> = lines.map(|line| serde_json::from_str(&line).unwrap()).collect();
    let status = child.wait().unwrap();
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert!(status.success(), "{status}: {stderr}");
    let done = rest.iter().find(|event| event["event"] == "done").unwrap();
    assert_eq!(done["stopped"], true);
    let steps = done["steps"].as_u64().unwrap();
    assert!(rest.iter().any(|event| event["event"] == "saved" && event["step"] == steps), "{rest:?}");
    assert!(stderr.contains("stopped early") && stderr.contains("--resume"), "{stderr}");

    let more = place.run(&format!("{FINETUNE} --steps {} --schedule constant --resume", steps + 1)).ok();
    assert!(more.stderr.contains(&format!("going on after step {steps}")), "{}", more.stderr);
    assert!(place.path("out/adapter_config.json").is_file());
    stderr
}
