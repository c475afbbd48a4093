//! What happens to pods, what users do, and what breaks.

use std::time::Duration;

use codex_reports::Kind;
use rand::Rng;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    cluster,
    process::Delivery,
    server::{NAMESPACE, Server},
    simulator::{OBJECTS, Simulator, object_path},
};
use crate::observe::simulated::WATCHES;

impl Simulator {
    /// A pod reports, ends, fails, lies or vanishes.
    pub(super) fn pod_acts(&mut self) {
        let running = self.running();
        let Some(pod) = self.pick(&running) else {
            return if self.chance(10) {
                self.resize("trainingruns", "cot");
            } else {
                self.begin("no pod is at work");
            };
        };
        let now = self.now();
        match self.random.random_range(0..100) {
            0..20 => {
                let step = self.random.random_range(1..900);
                self.begin(format!("{} reports", pod.name));
                self.post(&pod.token(), &pod, pod.progress(step));
            }
            20..70 => self.finish(&pod),
            70..78 => {
                let code = self.pick(&[1, 2, 137, 143]).unwrap();
                self.begin(format!("{} exits {code}", pod.name));
                if code != 143 {
                    self.disturb(&pod);
                }
                cluster::end_pod(&mut self.server.lock(), &pod.path, code, "", now);
            }
            78..84 => {
                self.begin(format!("{} lies", pod.name));
                self.disturb(&pod);
                let body = self.post(&pod.token(), &pod, pod.lie());
                if pod.kind != Kind::ReasoningPod && self.chance(50) {
                    cluster::end_pod(&mut self.server.lock(), &pod.path, 0, &body, now);
                }
            }
            84..90 => {
                self.begin(format!("{} vanishes", pod.name));
                self.disturb(&pod);
                self.server.lock().remove(&pod.path);
            }
            90..95 => {
                // The other pod may be gone.
                let tokens = self.sent.iter().map(|(token, _)| token.clone());
                let others: Vec<_> = tokens.filter(|token| *token != pod.token()).collect();
                let Some(other) = self.pick(&others) else { return self.begin("no other pod has reported") };
                self.begin(format!("{} reports with the token of {other}", pod.name));
                let truth = pod.truth(&self.server.lock());
                self.post(&other, &pod, truth);
            }
            _ => {
                self.begin("a report is sent again");
                let sent = self.sent.clone();
                if let Some(sent) = self.pick(&sent) {
                    self.send(sent, false);
                }
            }
        }
    }

    /// A user changes, deletes or recreates something.
    pub(super) fn user_acts(&mut self) {
        let (plural, name) = self.pick(&OBJECTS).unwrap();
        let path = object_path(plural, name);
        if !self.server.lock().objects.contains_key(&path) {
            self.begin(format!("a user creates {name}"));
            return self.create(plural);
        }
        match self.random.random_range(0..100) {
            0..30 if plural != "reasoningpods" => {
                let suspend = self.chance(50);
                self.begin(format!("a user sets spec.suspend of {name} to {suspend}"));
                self.edit(&path, |object| object["spec"]["suspend"] = json!(suspend));
            }
            0..30 => {
                let (dry_run, replicas) = (self.chance(20), self.random.random_range(0..4));
                self.begin(format!("a user sets spec.dryRun to {dry_run} and spec.replicas to {replicas}"));
                self.edit(&path, |object| {
                    object["spec"]["dryRun"] = json!(dry_run);
                    object["spec"]["replicas"] = json!(replicas);
                });
            }
            30..40 if plural != "evaluations" => {
                let ring = self.pick(&["0C_base_", "0D_base_"]).unwrap();
                self.begin(format!("a user moves {name} to {ring}"));
                self.edit(&path, |object| object["spec"]["rolloutRing"] = json!(ring));
            }
            40..45 if plural == "reasoningpods" => {
                let (rate, encrypt) = (format!("{}/60s", self.random.random_range(1..9)), self.chance(30));
                self.begin(format!(
                    "a user limits {name} to {rate}{}",
                    if encrypt { ", with a certificate" } else { "" }
                ));
                self.edit(&path, |object| {
                    object["spec"]["serving"] = json!({"rateLimit": rate});
                    if encrypt {
                        object["spec"]["serving"]["tls"] = json!({"secret": "team-tls"});
                    }
                });
            }
            40..48 if plural != "reasoningpods" => self.resize(plural, name),
            30..50 => {
                self.begin(format!("a user labels {name}"));
                let value = self.random.random_range(0..9).to_string();
                self.edit(&path, |object| object["metadata"]["labels"]["example.com/label"] = json!(value));
            }
            50..65 => {
                self.begin(format!("a user deletes {name}"));
                self.server.lock().remove(&path);
                if self.chance(40) {
                    self.create(plural);
                }
            }
            65..85 => {
                let ours = |object: &Value| {
                    object["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "codex-controller"
                        && (Server::owner(object).is_some() || object["kind"] == "NetworkPolicy")
                };
                let children: Vec<String> = {
                    let server = self.server.lock();
                    let children = server.objects.iter().filter(|(_, object)| ours(object) && object["kind"] != "Pod");
                    children.map(|(path, _)| path.clone()).collect()
                };
                if let Some(child) = self.pick(&children) {
                    self.begin(format!("a user deletes {child}"));
                    self.server.lock().remove(&child);
                } else {
                    self.begin("there is no child to delete");
                }
            }
            85..93 => {
                self.begin("a user changes the image of the servers");
                let path = format!("/apis/apps/v1/namespaces/{NAMESPACE}/deployments/codex-s-rc");
                self.edit(&path, |object| {
                    object["spec"]["template"]["spec"]["containers"][0]["image"] = json!("evil:1");
                });
            }
            _ => {
                self.begin(format!("a user writes into the status of {name}"));
                let forged = self.random.random_range(0..3);
                let done = match plural {
                    "trainingruns" => "Succeeded",
                    "evaluations" => "Judged",
                    _ => "Serving",
                };
                self.edit(&path, |object| {
                    if object["status"].is_object() {
                        match forged {
                            0 => object["status"]["phase"] = json!(done),
                            1 => object["status"]["conditions"] = json!([]),
                            _ => object["status"] = json!({}),
                        }
                    }
                });
                // What the controller knew of the object may be gone, so that it may have to work again.
                let mut server = self.server.lock();
                if let Some(uid) =
                    server.objects.get(&path).and_then(|object| object["metadata"]["uid"].as_str()).map(str::to_owned)
                {
                    server.known.finished.remove(&uid);
                }
            }
        }
    }

    /// Something breaks, or works again.
    pub(super) fn fault(&mut self) {
        let index = self.random.random_range(0..self.processes.len());
        match self.random.random_range(0..100) {
            0..25 => {
                let rate = self.pick(&[0, 20, 100, 300]).unwrap();
                self.begin(format!("{rate} of 1,000 requests fail"));
                self.server.lock().faults = rate;
            }
            25..65 => {
                let (watch, ..) = self.pick(WATCHES).unwrap();
                let delivery = match self.random.random_range(0..4) {
                    0 => Delivery::Cut,
                    1 => Delivery::After(self.random.random_range(4_000..60_000)),
                    2 => Delivery::After(self.random.random_range(100..4_000)),
                    _ => Delivery::After(1),
                };
                self.begin(format!("the watch {watch} of process {index}: {delivery:?}"));
                self.processes[index].deliver(watch, delivery);
            }
            65..80 => {
                let seconds = self.random.random_range(1..90);
                self.begin(format!("process {index} stands still for {seconds} s"));
                self.processes[index].paused_until = Instant::now() + Duration::from_secs(seconds);
            }
            80..92 => {
                self.begin(format!("process {index} is killed"));
                self.restart(index, "was killed");
            }
            _ => {
                let seconds = self.random.random_range(-20..20);
                self.begin(format!("the clock of process {index} is {seconds} s ahead"));
                self.processes[index].clock.set_ahead(seconds);
            }
        }
    }
}
