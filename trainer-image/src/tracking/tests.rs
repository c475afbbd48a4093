mod server;

use std::{collections::BTreeMap, fs, path::PathBuf};

use jiff::Timestamp;
use prost::Message as _;
use serde_json::{Value, json};

use super::{
    event::{Content, Event, What, masked_checksum},
    *,
};
use crate::artifacts::ledger::tests::{row, text};

/// The 2023-11-14T22:13:20.5Z.
const AT: f64 = 1_700_000_000.5;

fn described() -> Described {
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    Described {
        id: "0b6f1c529d7e4a3b8c215f0e6d7a9b10".to_owned(),
        name: "cot: starter".to_owned(),
        owner: "team".to_owned(),
        params: vec![pair("seed", "1"), pair("training.learning_rate", "0.01")],
        tags: vec![pair("codex.config_digest", "ab12")],
        ..Described::default()
    }
}

/// The rows of a step: two of training, one of an evaluation.
fn rows(step: u64) -> Vec<Row> {
    let loss = 1.0 / step as f64;
    let evaluated = Row { split: "val".to_owned(), ..row(step, "loss", 2.0 * loss) };
    vec![row(step, "loss", loss), row(step, "learning_rate", 0.01), evaluated]
}

/// Reads the records of an event file, with a checksum that is computed bit by bit.
fn events(file: &[u8]) -> Vec<Event> {
    fn checksum(bytes: &[u8]) -> u32 {
        let one = |crc: u32, byte: &u8| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
        };
        let crc = !bytes.iter().fold(!0, one);
        crc.rotate_right(15).wrapping_add(0xa282_ead8)
    }
    let (mut rest, mut events) = (file, Vec::new());
    let number = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap());
    while !rest.is_empty() {
        let (head, tail) = rest.split_at(12);
        assert_eq!(number(&head[8..]), checksum(&head[..8]));
        let length = u64::from_le_bytes(head[..8].try_into().unwrap());
        let (data, tail) = tail.split_at(usize::try_from(length).unwrap());
        let (sum, tail) = tail.split_at(4);
        assert_eq!(number(sum), checksum(data));
        events.push(Event::decode(data).unwrap());
        rest = tail;
    }
    events
}

/// Returns the scalars of a directory by tag and step as TensorBoard shows them: a session removes what it begins before.
pub(crate) fn scalars(directory: &Path) -> BTreeMap<(String, i64), f32> {
    let mut files: Vec<PathBuf> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut scalars = BTreeMap::new();
    for event in files.iter().flat_map(|file| events(&fs::read(file).unwrap())) {
        match event.what.unwrap() {
            What::FileVersion(_) => {}
            What::SessionLog(_) => scalars.retain(|(_, step), _| *step < event.step),
            What::Summary(summary) => {
                for value in summary.value {
                    if let Some(Content::Scalar(number)) = value.content {
                        let before = scalars.insert((value.tag, event.step), number);
                        assert_eq!(before, None, "a value is there twice");
                    }
                }
            }
        }
    }
    scalars
}

/// The numbers were computed by the `crc32c` and the messages of the package `tensorboard` 2.21.0.
#[test]
fn events_have_the_bytes_of_tensorboard() {
    assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
    assert_eq!(masked_checksum(b"123456789"), 0xc78a_b0e5);
    let mut record = Vec::new();
    Event::version(AT).append_to(&mut record);
    let expected = "1800000000000000a37f4b220900002040fc54d9411a0d627261696e2e4576656e743a322b353110";
    assert_eq!(hex::encode(record), expected);
    let cases = [
        (
            Event::scalar(AT, 10, "train/loss".to_owned(), 0.25),
            "0900002040fc54d941100a2a130a110a0a747261696e2f6c6f7373150000803e",
        ),
        (Event::session(AT, 20), "0900002040fc54d94110143a020801"),
        (
            Event::text(AT, 0, "a/text_summary".to_owned(), "hi".to_owned()),
            "0900002040fc54d9412a2a0a280a0e612f746578745f73756d6d617279420c0807120412020801420268694a080a060a0474657874",
        ),
    ];
    for (event, expected) in cases {
        assert_eq!(hex::encode(event.encode_to_vec()), expected);
    }
}

/// Reads the records of a `.wandb` file, with a checksum that is computed bit by bit.
fn wandb_records(file: &[u8]) -> Vec<wandb_record::What> {
    let checksum = |kind: u8, data: &[u8]| {
        let one = |crc: u32, byte: &u8| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
        };
        !data.iter().fold(one(!0, &kind), one)
    };
    assert_eq!(file[..7], *b":W&B\xe1\xbe\x00");
    let (mut at, mut whole, mut begun, mut records) = (7, Vec::new(), false, Vec::new());
    while at < file.len() {
        let left = wandb_record::BLOCK - at % wandb_record::BLOCK;
        if left < wandb_record::HEAD {
            assert!(file[at..at + left].iter().all(|byte| *byte == 0));
            at += left;
            continue;
        }
        let length = usize::from(u16::from_le_bytes(file[at + 4..at + 6].try_into().unwrap()));
        let (kind, data) = (file[at + 6], &file[at + 7..at + 7 + length]);
        assert_eq!(u32::from_le_bytes(file[at..at + 4].try_into().unwrap()), checksum(kind, data));
        assert_eq!(begun, kind > 2, "{kind}");
        begun = kind == 2 || kind == 3;
        whole.extend_from_slice(data);
        if kind == 1 || kind == 4 {
            let record = wandb_record::Record::decode(&whole[..]).unwrap();
            records.push(record.what.unwrap());
            assert_eq!(record.num as usize, records.len());
            whole.clear();
        }
        at += 7 + length;
    }
    assert!(!begun);
    records
}

/// Returns the histories of a run of W&B: values by key and step.
pub(crate) fn wandb_scalars(directory: &Path) -> BTreeMap<(String, u64), f64> {
    let run = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let [run] = &run[..] else { panic!("{run:?}") };
    let id = run.file_name().unwrap().to_str().unwrap().rsplit('-').next().unwrap().to_owned();
    let mut scalars = BTreeMap::new();
    for record in wandb_records(&fs::read(run.join(format!("run-{id}.wandb"))).unwrap()) {
        let wandb_record::What::History(history) = record else { continue };
        let step = history.step.unwrap().num.cast_unsigned();
        for item in history.item.iter().filter(|item| !item.nested[0].starts_with('_')) {
            let before = scalars.insert((item.nested[0].clone(), step), item.json.parse().unwrap());
            assert_eq!(before, None, "a value is there twice");
        }
    }
    scalars
}

/// The bytes were written by the messages of the client of W&B 0.31.0.
#[test]
fn records_have_the_bytes_of_wandb() {
    use wandb_record::{Config, Exit, Files, History, Item, Log, Record, Run, What};
    let item = vec![Item::nested("train/loss", &json!(1.5)), Item::nested("_step", &json!(1))];
    let run = Run {
        id: "0b".to_owned(),
        entity: String::new(),
        project: "p".to_owned(),
        config: Some(Config { update: vec![Item::top("seed", &json!(1))] }),
        job_type: "train".to_owned(),
        display_name: "a".to_owned(),
        start_time: Some(Timestamp::from_millisecond(1_700_000_000_500).unwrap().into()),
    };
    let cases = [
        (
            8,
            What::History(History::new(item, 1)),
            "080812250a12120a747261696e2f6c6f7373820103312e350a0b12055f737465708201013112020801",
        ),
        (
            3,
            What::Files(Files::of("wandb-metadata.json")),
            "080332190a170a1377616e64622d6d657461646174612e6a736f6e1801",
        ),
        (
            2,
            What::Run(run),
            "08028a012e0a0230621a0170220c0a0a0a0473656564820101313a05747261696e4201618a010c0880e2cfaa061080cab5ee01",
        ),
        (9, What::Exit(Exit { code: 143, runtime: 7 }), "0809920105088f011007"),
    ];
    for (num, what, expected) in cases {
        assert_eq!(hex::encode(Record { num, what: Some(what) }.encode_to_vec()), expected);
    }
    // Records of every length around the end of a block.
    for length in wandb_record::BLOCK - 80..wandb_record::BLOCK + 10 {
        let mut log = Log::new();
        let text = json!("x".repeat(length));
        for _ in 0..3 {
            log.push(What::History(History::new(vec![Item::nested("a", &text)], 1)));
            log.push(What::Exit(Exit { code: 0, runtime: 0 }));
        }
        let records = wandb_records(&log.drain());
        assert_eq!(records.len(), 6, "{length}");
        let What::History(history) = &records[4] else { panic!("{length}") };
        assert_eq!(history.item[0].json, text.to_string(), "{length}");
    }
}

#[test]
fn wandb_has_a_record_for_each_step_and_the_end() {
    let root = tempfile::tempdir().unwrap();
    attempt(|start| Box::new(Wandb::start(start).unwrap()), root.path(), &[], &[2, 4]);
    attempt(|start| Box::new(Wandb::start(start).unwrap()), root.path(), &[2], &[4, 6]);
    let directory = root.path().join(wandb::DIRECTORY);
    let scalars = wandb_scalars(&directory);
    assert_eq!(scalars.len(), 9, "{scalars:?}");
    assert_eq!(scalars.get(&("val/loss".to_owned(), 4)), Some(&0.5));
    let run = fs::read_dir(&directory).unwrap().next().unwrap().unwrap().path();
    let name = run.file_name().unwrap().to_str().unwrap();
    assert!(name.starts_with("offline-run-20") && name.ends_with("-0b6f1c529d7e4a3b8c215f0e6d7a9b10"), "{name}");
    let read = |name: &str| serde_json::from_slice::<Value>(&fs::read(run.join("files").join(name)).unwrap()).unwrap();
    assert_eq!(read("config.yaml")["training.learning_rate"], json!({ "value": 0.01 }));
    assert_eq!(
        (&read("wandb-summary.json")["_step"], &read("wandb-summary.json")["val/loss"]),
        (&json!(6), &json!(2.0 / 6.0))
    );
    assert_eq!(read("wandb-metadata.json")["program"], "codex train");
}

/// Runs an attempt that resumes at `step` with the rows of `history`, and logs those of `steps`.
fn attempt(start: impl Fn(&Start) -> Box<dyn Tracker>, artifacts: &Path, history: &[u64], steps: &[u64]) {
    let (run, history) = (described(), history.iter().flat_map(|step| rows(*step)).collect::<Vec<_>>());
    let step = history.last().map_or(0, |row| row.step);
    let mut tracker = start(&Start { artifacts, run: &run, history: &history, step });
    for step in steps {
        tracker.log(&rows(*step)).unwrap();
    }
    tracker.end(Ended::Finished).unwrap();
}

#[test]
fn a_resumed_run_replaces_later_scalars() {
    let root = tempfile::tempdir().unwrap();
    let start = |start: &Start| -> Box<dyn Tracker> { Box::new(TensorBoard::start(start).unwrap()) };
    attempt(start, root.path(), &[], &[10, 20, 30]);
    attempt(start, root.path(), &[10, 20], &[30, 40]);
    let directory = root.path().join(tensorboard::DIRECTORY);
    let expected = |steps: &[u64]| -> BTreeMap<(String, i64), f32> {
        let all = steps.iter().flat_map(|step| rows(*step));
        all.map(|row| ((series(&row), row.step.cast_signed()), row.value as f32)).collect()
    };
    assert_eq!(scalars(&directory), expected(&[10, 20, 30, 40]));
    assert_eq!(event_count(&directory), 2);
    // The run starts again from its beginning.
    attempt(start, root.path(), &[], &[10]);
    assert_eq!(scalars(&directory), expected(&[10]));
    // A run that was not tracked before.
    let other = tempfile::tempdir().unwrap();
    attempt(start, other.path(), &[10, 20], &[30]);
    assert_eq!(scalars(&other.path().join(tensorboard::DIRECTORY)), expected(&[10, 20, 30]));
}

fn event_count(directory: &Path) -> usize {
    fs::read_dir(directory).unwrap().count()
}

#[test]
fn a_table_has_the_rows_of_the_ledger() {
    let root = tempfile::tempdir().unwrap();
    let start = |start: &Start| -> Box<dyn Tracker> { Box::new(Csv::start(start).unwrap()) };
    let path = root.path().join(csv::FILE);
    let header = "timestamp,run_id,step,split,metric,value,dataset,tags\n";
    attempt(start, root.path(), &[], &[]);
    assert_eq!(fs::read_to_string(&path).unwrap(), header);
    attempt(start, root.path(), &[], &[2, 4]);
    attempt(start, root.path(), &[2], &[5]);
    let expected = [
        header,
        "1970-01-01T00:00:02Z,r,2,train,loss,0.5,a+b,{}\n",
        "1970-01-01T00:00:02Z,r,2,train,learning_rate,0.01,a+b,{}\n",
        "1970-01-01T00:00:02Z,r,2,val,loss,1.0,a+b,{}\n",
        "1970-01-01T00:00:05Z,r,5,train,loss,0.2,a+b,{}\n",
        "1970-01-01T00:00:05Z,r,5,train,learning_rate,0.01,a+b,{}\n",
        "1970-01-01T00:00:05Z,r,5,val,loss,0.4,a+b,{}\n",
    ];
    assert_eq!(fs::read_to_string(&path).unwrap(), expected.concat());
    let quoted =
        Row { dataset: "a,\"b\"".to_owned(), tags: [("k".to_owned(), "v".to_owned())].into(), ..row(1, "loss", 1e300) };
    let line = String::from_utf8(csv::lines(&[quoted]).unwrap()).unwrap();
    assert_eq!(line, "1970-01-01T00:00:01Z,r,1,train,loss,1e300,\"a,\"\"b\"\"\",\"{\"\"k\"\":\"\"v\"\"}\"\n");
}

/// Returns the text files below a directory by their paths in it.
fn files(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
            } else {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                found.insert(name, fs::read_to_string(path).unwrap());
            }
        }
    }
    found
}

#[test]
fn a_file_store_has_the_files_of_mlflow() {
    let root = tempfile::tempdir().unwrap();
    let run = fs::canonicalize(root.path()).unwrap();
    let artifacts = run.join("artifacts");
    let start =
        |start: &Start| -> Box<dyn Tracker> { Box::new(MlflowFiles::open(start, "Default".to_owned()).unwrap()) };
    attempt(start, &artifacts, &[2], &[4, 5]);
    attempt(start, &artifacts, &[2], &[5]);
    let store = run.join(mlflow_files::DIRECTORY);
    let place = format!("file://{}", store.display());
    let id = described().id;
    let found = files(&store);
    let experiment = format!(
        "artifact_location: \"{place}/0\"\ncreation_time: 2000\nexperiment_id: \"0\"\nlast_update_time: 2000\n\
         lifecycle_stage: \"active\"\nname: \"Default\"\n"
    );
    assert_eq!(found["0/meta.yaml"], experiment);
    let meta = &found[&format!("0/{id}/meta.yaml")];
    let ended = meta.lines().find_map(|line| line.strip_prefix("end_time: ")).unwrap();
    assert!(ended.parse::<u64>().unwrap() > 1_700_000_000_000, "{ended}");
    let run = format!(
        "artifact_uri: \"{place}/0/{id}/artifacts\"\nend_time: {ended}\nentry_point_name: \"\"\nexperiment_id: \"0\"\n\
         lifecycle_stage: \"active\"\nrun_id: \"{id}\"\nrun_name: \"cot: starter\"\nrun_uuid: \"{id}\"\nsource_name: \"\"\n\
         source_type: 4\nsource_version: \"\"\nstart_time: 2000\nstatus: 3\ntags: []\nuser_id: \"team\"\n"
    );
    assert_eq!(*meta, run);
    let rest: BTreeMap<&str, &str> = found
        .iter()
        .filter_map(|(name, text)| Some((name.strip_prefix(&format!("0/{id}/"))?, text.as_str())))
        .filter(|(name, _)| *name != "meta.yaml")
        .collect();
    let expected = BTreeMap::from([
        ("metrics/train/learning_rate", "2000 0.01 2\n5000 0.01 5\n"),
        ("metrics/train/loss", "2000 0.5 2\n5000 0.2 5\n"),
        ("metrics/val/loss", "2000 1.0 2\n5000 0.4 5\n"),
        ("params/seed", "1"),
        ("params/training.learning_rate", "0.01"),
        ("tags/codex.config_digest", "ab12"),
        ("tags/mlflow.runName", "cot: starter"),
        ("tags/mlflow.source.name", "codex train"),
        ("tags/mlflow.source.type", "JOB"),
        ("tags/mlflow.user", "team"),
    ]);
    assert_eq!(rest, expected);
    assert!(store.join(".trash").is_dir() && store.join("0").join(id).join("artifacts").is_dir());
}

#[test]
fn an_experiment_keeps_the_id_that_it_has() {
    let root = tempfile::tempdir().unwrap();
    let export = |experiment: &str| {
        let path = mlflow_files::export(&described(), &rows(2), root.path(), experiment.to_owned()).unwrap();
        path.parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned()
    };
    let own = export("own");
    assert!(own.len() == 18 && own.bytes().all(|digit| digit.is_ascii_digit()), "{own}");
    assert_eq!(export("own"), own);
    assert_ne!(export("other"), own);
    let taken = root.path().join("77");
    fs::create_dir(&taken).unwrap();
    fs::write(taken.join("meta.yaml"), "name: theirs\nexperiment_id: '77'\n").unwrap();
    assert_eq!(export("theirs"), "77");
    let below = root.path().join("artifacts/mlruns");
    let refused = mlflow_files::export(&described(), &rows(2), &below, "own".to_owned()).unwrap_err().to_string();
    assert!(refused.ends_with("where MLflow reads no runs: name another directory") && !below.exists(), "{refused}");
    assert_eq!(fs::read_to_string(taken.join("meta.yaml")).unwrap(), "name: theirs\nexperiment_id: '77'\n");
}

#[test]
fn a_tracker_that_fails_is_counted_and_the_others_go_on() {
    let root = tempfile::tempdir().unwrap();
    crate::run_folder::tests::run(root.path());
    let artifacts = root.path().join("artifacts");
    fs::write(artifacts.join("metrics.ndjson"), text(&rows(2))).unwrap();
    // A file where a directory would be.
    fs::write(artifacts.join("tensorboard"), "").unwrap();
    let registry = prometheus::Registry::new();
    let counters = codex_metrics::trainer::TRACKING_FAILURES.labelled(&registry).unwrap();
    let settings = TrackingSettings { csv: true, tensorboard: true, ..TrackingSettings::default() };
    let counter = |name: &str| Some(counters.with_label_values(&[name]));
    let mut trackers = Trackers::start(settings, &artifacts, 2, counter);
    trackers.log(&rows(4));
    trackers.end(Ended::Interrupted);
    assert_eq!(NAMES.map(|name| counters.with_label_values(&[name]).get()), [0, 1, 0, 0, 0]);
    assert_eq!(fs::read_to_string(artifacts.join(csv::FILE)).unwrap().lines().count(), 7);
}

#[test]
fn an_export_is_written_again_in_its_place_and_keeps_others_events() {
    let root = tempfile::tempdir().unwrap();
    crate::run_folder::tests::run(root.path());
    let path = root.path().join("artifacts/metrics.ndjson");
    fs::write(&path, text(&[rows(2), rows(4)].concat())).unwrap();
    let ledger = Ledger::read(&path).unwrap();
    let output = root.path().join("out");
    for _ in 0..2 {
        let (file, lacking) = export(Format::Tensorboard, &ledger, &output).unwrap();
        assert!(file.is_file() && lacking.is_empty());
    }
    assert_eq!(event_count(&output), 1);
    assert_eq!(scalars(&output).len(), 6);
    fs::write(output.join("events.out.tfevents.1.other"), "").unwrap();
    let refused = export(Format::Tensorboard, &ledger, &output).unwrap_err().to_string();
    assert!(refused.ends_with("has event files of another run or export: name an empty directory"), "{refused}");
    let (table, _) = export(Format::Csv, &ledger, &output).unwrap();
    assert_eq!(fs::read_to_string(table).unwrap().lines().count(), 7);
}
