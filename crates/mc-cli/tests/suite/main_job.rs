//! The first command a newcomer types, whole: about a minute in a debug build.

use crate::place::Place;

#[test]
fn fine_tuning_the_embedded_model_teaches_it_held_out_requests() {
    let place = Place::new();
    let events = place.run("finetune --json").ok().json();
    let of = |name: &str| events.iter().rfind(|e| e["event"] == name).unwrap_or_else(|| panic!("no event {name}"));
    let exact = of("exact");
    let (before, after, requests) = (&exact["before"], exact["after"].as_u64().unwrap(), exact["of"].as_u64().unwrap());
    assert_eq!((before.as_u64(), requests), (Some(0), 105), "{exact}");
    // 90 to 96 with different seeds and numbers of threads; below 80 % something is broken.
    assert!(after * 100 >= requests * 80, "{exact}");
    assert!(of("done")["eval"]["loss"].as_f64().unwrap() < 0.2);

    let answer = |more: &str| {
        let mut command = place.command();
        command
            .args(["generate", "--quiet", "--prompt", "Change directory to my home =>"])
            .args(more.split_whitespace());
        String::from_utf8(command.assert().success().get_output().stdout.clone()).unwrap()
    };
    assert_eq!(answer("--adapter adapters/shell").trim(), "cd ~");
    assert_ne!(answer("").trim(), "cd ~");
}
