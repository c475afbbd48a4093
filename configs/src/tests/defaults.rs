//! Defaults lists: a table of cases by the documented rules of Hydra, and what they give in the shipped files.

use serde_json::json;

use super::{data, overrides, starter};
use crate::{
    ConfigError, Explained, Located, Origin, Sources, Training, compose_training, compose_training_from,
    defaults::parts,
    explain_training,
    options::{Catalog, OptionGroup},
};

/// Groups as the documentation of Hydra has them. The files have no settings.
static GROUPS: Catalog = Catalog {
    field: &OptionGroup { name: "template", options: &[("plain", "templates/plain", "defaults: [/db: mysql]")] },
    groups: &[
        OptionGroup {
            name: "db",
            options: &[
                ("mysql", "db/mysql", ""),
                ("sqlite", "db/sqlite", ""),
                ("top", "db/top", "# Keys from the top.\n# @package _global_\n"),
                ("inner", "db/inner", "# @package store._group_._name_\n"),
            ],
        },
        OptionGroup {
            name: "server",
            options: &[
                ("apache", "server/apache", "defaults:\n  - db: mysql\n  - _self_\n"),
                ("nginx", "server/nginx", "defaults:\n  - /db: mysql\n"),
                ("small", "server/small", "defaults:\n  - nginx\n  - override /db: sqlite\n"),
                ("circle", "server/circle", "defaults:\n  - round\n"),
                ("round", "server/round", "defaults:\n  - /server/circle\n"),
                ("lost", "server/lost", "defaults:\n  - experiment: fast\n"),
            ],
        },
        OptionGroup {
            name: "server/db",
            options: &[("mysql", "server/db/mysql", ""), ("sqlite", "server/db/sqlite", "")],
        },
        OptionGroup {
            name: "experiment",
            options: &[(
                "fast",
                "experiment/fast",
                "# @package _global_\ndefaults:\n  - override /db: sqlite\n  - override /server: nginx\n  - _self_\n",
            )],
        },
    ],
};

/// Returns the files of a list, each with its package, or the sentence of the refusal.
fn files(list: &str, texts: &[&str]) -> Result<Vec<String>, String> {
    let config = format!("defaults: {list}\n");
    let parts = parts(&GROUPS, &[], Some(&config), &overrides(texts)).map_err(|error| error.to_string())?;
    let named = |origin: &Origin, package: &str| match package {
        "" => origin.to_string(),
        package => format!("{origin}@{package}"),
    };
    Ok(parts.iter().map(|part| named(&part.origin, &part.package)).collect())
}

#[test]
fn lists_are_followed_as_by_hydra() {
    let cases: &[(&str, &[&str], &[&str])] = &[
        // Without _self_, the file itself comes last and wins.
        ("[{db: mysql}]", &[], &["db/mysql@db", "config"]),
        ("[{db: mysql}, _self_]", &[], &["db/mysql@db", "config"]),
        ("[_self_, {db: mysql}]", &[], &["config", "db/mysql@db"]),
        ("[]", &[], &["config"]),
        ("", &[], &["config"]),
        // Choices are replaced in their place.
        ("[{db: mysql}]", &["db=sqlite"], &["db/sqlite@db", "config"]),
        ("[{db: mysql}]", &["db=sqlite", "db=mysql"], &["db/mysql@db", "config"]),
        ("[{db: mysql}]", &["db=null"], &["config"]),
        ("[{db: null}]", &[], &["config"]),
        ("[{db: null}, _self_]", &["db=sqlite"], &["db/sqlite@db", "config"]),
        ("[{db: '???'}]", &["db=sqlite"], &["db/sqlite@db", "config"]),
        // Lists of options.
        ("[{db: [mysql, sqlite]}]", &[], &["db/mysql@db", "db/sqlite@db", "config"]),
        ("[{db: [mysql, sqlite]}]", &["db=sqlite"], &["db/sqlite@db", "config"]),
        ("[{db: mysql}]", &["db=[sqlite, mysql]"], &["db/sqlite@db", "db/mysql@db", "config"]),
        // Removals.
        ("[{db: mysql}]", &["~db"], &["config"]),
        ("[{db: mysql}]", &["~db=mysql"], &["config"]),
        // Packages: of the list, then of the header, then of the group.
        ("[{db@src: mysql}, {db@dst: sqlite}]", &[], &["db/mysql@src", "db/sqlite@dst", "config"]),
        ("[{db@src: mysql}, {db@dst: sqlite}]", &["db@src=sqlite"], &["db/sqlite@src", "db/sqlite@dst", "config"]),
        ("[{db@_global_: mysql}]", &[], &["db/mysql", "config"]),
        ("[{db@_global_.a.b: mysql}]", &[], &["db/mysql@a.b", "config"]),
        ("[{db@_group_.x: mysql}]", &[], &["db/mysql@db.x", "config"]),
        ("[{db: top}]", &[], &["db/top", "config"]),
        ("[{db@x: top}]", &[], &["db/top@x", "config"]),
        ("[{db: inner}]", &[], &["db/inner@store.db.inner", "config"]),
        // Groups are relative to that of the file, and so are packages, of absolute groups too.
        ("[{server: apache}]", &[], &["server/db/mysql@server.db", "server/apache@server", "config"]),
        (
            "[{server: apache}]",
            &["server/db=sqlite"],
            &["server/db/sqlite@server.db", "server/apache@server", "config"],
        ),
        ("[{server: nginx}]", &[], &["db/mysql@server.db", "server/nginx@server", "config"]),
        ("[{server: nginx}]", &["db@server.db=sqlite"], &["db/sqlite@server.db", "server/nginx@server", "config"]),
        ("[{server@web: apache}]", &[], &["server/db/mysql@web.db", "server/apache@web", "config"]),
        // A file of the same group, and an override of what it chooses.
        ("[{server: small}]", &[], &["db/sqlite@server.db", "server/nginx@server", "server/small@server", "config"]),
        // Files that cannot be replaced.
        ("[db/mysql]", &[], &["db/mysql@db", "config"]),
        ("[/db/mysql@x]", &[], &["db/mysql@x", "config"]),
        // An experiment overrides what stands before it; the command line overrides the experiment.
        (
            "[{db: mysql}, {server: apache}, {experiment: fast}]",
            &[],
            &["db/sqlite@db", "db/mysql@server.db", "server/nginx@server", "experiment/fast", "config"],
        ),
        (
            "[{db: mysql}, {server: apache}, {experiment: fast}]",
            &["db=mysql", "~server"],
            &["db/mysql@db", "experiment/fast", "config"],
        ),
        ("[{db: mysql}, override db: sqlite]", &[], &["db/sqlite@db", "config"]),
        ("[{db: mysql}, override db: sqlite, _self_]", &["db=mysql"], &["db/mysql@db", "config"]),
        // What does not exist, and may not.
        ("[{optional db: nothing}]", &[], &["config"]),
        ("[{optional nothing: here}]", &[], &["config"]),
        ("[{optional db: mysql}]", &[], &["db/mysql@db", "config"]),
        // What is added comes last, so that it can override.
        (
            "[{db: mysql}]",
            &["+server=apache"],
            &["db/mysql@db", "config", "server/db/mysql@server.db", "server/apache@server"],
        ),
        (
            "[{db: mysql}, {server: apache}]",
            &["+experiment=fast"],
            &["db/sqlite@db", "db/mysql@server.db", "server/nginx@server", "config", "experiment/fast"],
        ),
        ("[{db: mysql}]", &["+db@other=sqlite"], &["db/mysql@db", "config", "db/sqlite@other"]),
    ];
    for (list, texts, wanted) in cases {
        let list = list.replace("override db: sqlite", "{override db: sqlite}");
        let found = files(&list, texts).unwrap_or_else(|why| panic!("{list} {texts:?}: {why}"));
        assert_eq!(found, *wanted, "{list} {texts:?}");
    }
}

#[test]
fn without_a_list_in_the_settings_choices_stand_between_template_and_settings() {
    let (path, text) = GROUPS.field.option("plain").expect("the template");
    let files = |config: Option<&str>, texts: &[&str]| -> Vec<String> {
        let below = [(Origin::Group(path), text)];
        let parts = parts(&GROUPS, &below, config, &overrides(texts)).expect("good");
        parts.iter().map(|part| part.origin.to_string()).collect()
    };
    assert_eq!(files(Some("key: 1"), &[]), ["db/mysql", "templates/plain", "config"]);
    // A choice of the template's list is replaced there.
    assert_eq!(files(None, &["db=sqlite"]), ["db/sqlite", "templates/plain"]);
    let both = files(Some("key: 1"), &["experiment=fast", "+server=apache"]);
    assert_eq!(both, ["db/sqlite", "templates/plain", "db/mysql", "server/nginx", "experiment/fast", "config"]);
    // A plain choice is stronger than the list of a file, an added one is not.
    let both = files(None, &["experiment=fast", "server=apache"]);
    assert_eq!(both, ["db/sqlite", "templates/plain", "server/db/mysql", "server/apache", "experiment/fast"]);
    assert_eq!(files(None, &["+server=nginx", "~db"]), ["templates/plain", "db/mysql", "server/nginx"]);
}

#[test]
fn wrong_lists_are_refused_with_what_would_be_right() {
    let cases: &[(&str, &[&str], &str)] = &[
        (
            "[{db: mysq}]",
            &[],
            "config has `db: mysq` in its defaults list: db has no option mysq (did you mean mysql?)",
        ),
        ("[{db: mysql}]", &["db=sqlit"], "db \"sqlit\" is unknown (did you mean sqlite?): use one of mysql, sqlite"),
        ("[{optional db: nothing}]", &["db=nothing"], "db \"nothing\" is unknown"),
        ("[{dbb: mysql}]", &[], "there is no group dbb (did you mean db?): the groups are db (mysql, "),
        ("[{server: lost}]", &[], "there is no group server/experiment (did you mean /experiment?)"),
        ("[{template: plain}]", &[], "config names template, which is not a setting: set spec.template instead"),
        ("[/template/plain]", &[], "config names template, which is not a setting: set spec.template instead"),
        ("[{db: '???'}]", &[], "choose an option of db, such as by the override db=NAME: one of mysql, sqlite"),
        ("[{db: mysql}, {db: sqlite}]", &[], "write `override db: NAME` at the end of a list to replace that one"),
        (
            "[{db: mysql}]",
            &["+db=sqlite"],
            "overrides[0] is `+db=sqlite`: an option of db is chosen by `db: mysql` in config, too",
        ),
        (
            "[{override db: sqlite}]",
            &[],
            "no defaults list chooses an option of db; write `db: NAME`, without override",
        ),
        (
            "[{db@src: mysql}, {override db: sqlite}]",
            &[],
            "no defaults list chooses an option of db; did you mean db@src?",
        ),
        ("[{db@src: mysql}]", &["db@dst=sqlite"], "no defaults list chooses an option of db@dst; did you mean db@src?"),
        ("[_self_]", &["db@dst=sqlite"], "no defaults list chooses an option of db@dst; write +db@dst=NAME to add one"),
        ("[{experiment: fast}, {db: mysql}, {server: apache}]", &[], "db is chosen behind it"),
        ("[{override db: sqlite}, {db: mysql}]", &[], "write it before all entries with override"),
        ("[{db: mysql}, {override db: sqlite}, {override db: top}]", &[], "another entry overrides db"),
        ("[_self_, {db: mysql}, _self_]", &[], "write it once"),
        ("[{db: [mysql, mysql]}]", &[], "write mysql once"),
        ("[{server: circle}]", &[], "in a circle, from server/circle to server/round to server/circle"),
        (
            "[{db: mysql}]",
            &["~server"],
            "overrides[0] is `~server`: no defaults list chooses an option of server; leave it out",
        ),
        ("[{db: mysql}]", &["~db=sqlite"], "no defaults list chooses sqlite of db"),
        ("[mysql]", &[], "name a group and an option: the groups are db ("),
        ("[{db: '${server}'}]", &[], "references are replaced once all files are chosen"),
        ("[{db: 5}]", &[], "write the name of an option, a list of names, or null"),
        ("[{db: mysql, server: nginx}]", &[], "write one group in an entry"),
        ("[{very optional db: mysql}]", &[], "with at most one of optional and override before it"),
        ("[5]", &[], "write _self_, an option of the same group, or GROUP: OPTION"),
        ("5", &[], "config has 5 under defaults: write a list of at most 64 entries"),
    ];
    for (list, texts, told) in cases {
        let refused = files(list, texts).expect_err(list);
        assert!(refused.contains(told), "{list} {texts:?}: {refused}");
    }
    let long = format!("[{}]", vec!["db/mysql"; 65].join(", "));
    assert!(files(&long, &[]).expect_err("long").contains("config has 65 entries under defaults"));
}

fn explained(config: &str, texts: &[&str]) -> Result<Explained<Training>, Located> {
    let overrides = overrides(texts);
    let group = Some("cot-starter");
    let sources = Sources { group, config: Some(config), overrides: &overrides, ..Sources::default() };
    explain_training(&sources, 42, Some(data()))
}

#[test]
fn a_list_gives_what_the_same_choices_on_a_command_line_give() {
    let listed = |config: &str, texts: &[&str]| starter(texts, Some(config));
    assert_eq!(listed("defaults: [{reasoning: baseline}]", &[]), starter(&["+reasoning=baseline"], None));
    let both = "defaults:\n  - reasoning: chain_of_thought\n  - replay: rehearsal\n  - override /replay: interleaved\n";
    assert_eq!(listed(both, &[]), starter(&["reasoning=chain_of_thought", "replay=interleaved"], None));
    assert_eq!(listed(both, &["~replay"]), starter(&["reasoning=chain_of_thought"], None));
    // Where the file itself stands decides, and references are replaced after that.
    let steps = |config: &str| {
        let settings = listed(config, &[]).spec().settings.clone();
        (settings.training.max_steps, settings.training.checkpoint_every)
    };
    let own = "training: {max_steps: 700, checkpoint_every: '${training.max_steps}'}";
    assert_eq!(steps(&format!("defaults: [{{reasoning: baseline}}]\n{own}")), (700, 700));
    assert_eq!(steps(&format!("defaults: [_self_, {{reasoning: baseline}}]\n{own}")), (1000, 1000));
}

#[test]
fn values_have_their_file_and_line_below_a_package() {
    let config = "# @package training\ndefaults:\n  - /reasoning: chain_of_thought\nmax_steps: 900\n";
    let found = explained(config, &["training.batch_size=8"]).expect("good");
    let of = |key: &str| {
        let leaf = found.leaves.iter().find(|leaf| leaf.key == key).expect("a leaf");
        (leaf.value.clone(), leaf.origin.clone(), leaf.line)
    };
    assert_eq!(of("training.max_steps"), (json!(900), Origin::Config, Some(4)));
    let store = of("training.reasoning.objective.trace_store");
    assert_eq!(store.1, Origin::Group("training/reasoning/chain_of_thought.yaml"));
    assert_eq!(of("training.eval_samples").1, Origin::Group("training/reasoning/baseline.yaml"));
    assert!(found.leaves.iter().all(|leaf| leaf.line.is_some() || leaf.origin.layer() == "override"));
    let (own, outer) = (Origin::Config, Origin::Group("training/reasoning/chain_of_thought.yaml"));
    let within = |origin: &Origin| found.layers.iter().find(|share| share.origin == *origin).map(|share| &share.within);
    assert_eq!(within(&Origin::Group("training/reasoning/baseline.yaml")), Some(&vec![own.clone(), outer.clone()]));
    assert_eq!(within(&outer), Some(&vec![own.clone(), outer.clone()]));
    assert_eq!(within(&own), Some(&vec![own.clone()]));

    let refused = explained("# @package training\nmax_steps: 0\n", &[]).expect_err("out of range");
    assert_eq!((refused.origin, refused.line), (Some(Origin::Config), Some(2)));
    let refused = explained("defaults:\n  - /reasoning: baseline\n  - replay: bas\n", &[]).expect_err("no option");
    assert_eq!((refused.origin, refused.line), (Some(Origin::Config), Some(3)));
    let refused = explained("training: {max_steps: 900}\ndefaults: baseline\n", &[]).expect_err("no list");
    assert_eq!((refused.origin, refused.line), (Some(Origin::Config), Some(2)));
    let refused = explained("defaults: [{reasoning@x: baseline}]", &[]).expect_err("no such keys").to_string();
    assert!(
        refused.starts_with("training/reasoning/baseline.yaml names the key x.curriculum, which does not"),
        "{refused}"
    );
}

#[test]
fn a_template_of_ones_own_is_composed_as_an_included_one() {
    let of = |name: &str, text: &str, texts: &[&str]| -> Result<_, ConfigError> {
        compose_training_from(name, text, &overrides(texts), None, 42, data())
    };
    let text =
        "# Ours.\ndefaults:\n  - cot-starter\n  - /reasoning: baseline\n  - _self_\ntraining:\n  max_steps: 700\n";
    let ours = of("ours", text, &[]).expect("good");
    let same = starter(&["+reasoning=baseline", "training.max_steps=700"], None);
    assert_eq!((ours.spec().template.as_str(), &ours.spec().settings), ("ours", &same.spec().settings));
    assert_ne!(ours.digest(), same.digest(), "the name is part of the configuration");
    let absolute = of("ours", &text.replace("- cot-starter", "- /template/cot-starter"), &[]).expect("good");
    assert_eq!(absolute, ours);
    let below = of("ours", "# @package training\nmax_steps: 700\n", &[]).expect("good");
    assert_eq!(below.spec().settings.training.max_steps, 700);
    let replaced = of("ours", text, &["reasoning=chain_of_thought"]).expect("good");
    assert_eq!(replaced.spec().settings.curriculum.preset, "first_principles");
    let told = |name: &str, text: &str| of(name, text, &[]).expect_err("must be refused").to_string();
    assert_eq!(
        told("ours", "training: {batchsize: 8}"),
        "template names the key training.batchsize, which does not exist: did you mean training.batch_size?"
    );
    let own = |text| Sources { group: Some("ours"), own: Some(text), ..Sources::default() };
    let explained = explain_training(&own(text), 42, Some(data())).expect("good");
    assert_eq!(explained.resolved, ours);
    assert_eq!(explained.layers[3].within, [Origin::Template]);
    let wrong = explain_training(&own("# Ours.\ndefaults:\n  - cot-startr\n"), 42, None).expect_err("unknown");
    assert_eq!((wrong.origin, wrong.line), (Some(Origin::Template), Some(3)));
    assert!(told("lora", text).starts_with("template is lora: an included template has this name"));
    assert_eq!(told("ours", &"#".repeat(32_769)), "template has 32769 bytes: write at most 32768");
    assert!(
        told("ours", "defaults: [ours]")
            .starts_with("template has `ours` in its defaults list: template has no option")
    );
}

#[test]
fn only_the_list_of_a_template_names_a_template() {
    let own = "# Ours.\ndefaults:\n  - /replay: base\n  - /template/cot-plus\n  - _self_\n";
    for text in ["defaults: [cot-plus]", "\u{feff}defaults: [cot-startr@x]\n", own] {
        assert!(crate::names_template(text), "{text}");
        let refused = compose_training("lora", &[], Some(text), 42, data()).expect_err("no settings").to_string();
        assert!(refused.starts_with("config "), "{refused}");
    }
    for text in ["defaults: [{reasoning: baseline}, _self_]", "defaults: [/reasoning/baseline]", "training: {}", ""] {
        assert!(!crate::names_template(text), "{text}");
    }
}

#[test]
fn continual_runs_learn_one_task_after_another_and_replay_the_first() {
    let replay = |texts: &[&str]| {
        let run = starter(texts, None);
        let ids: Vec<String> = run.spec().settings.curriculum.phases.iter().map(|phase| phase.id.clone()).collect();
        assert_eq!(ids, ["arithmetic", "word-problems"]);
        let replay = &run.spec().settings.data.replay;
        (replay.buffer, replay.interleave_every, (replay.ratio * 100.0).round() as u64)
    };
    assert_eq!(replay(&["continual=base"]), (1024, 1, 10));
    assert_eq!(replay(&["continual=rehearsal"]), (2048, 1, 30));
    assert_eq!(replay(&["continual=interleaved"]), (4096, 32, 25));
    // The list of a file is overridden as any other.
    assert_eq!(replay(&["continual=base", "replay=rehearsal"]), (2048, 1, 30));
    assert_eq!(replay(&["continual=rehearsal", "~replay"]), (1024, 1, 0));
    assert_eq!(replay(&["+reasoning=baseline", "continual=base"]), (1024, 1, 10));
}
