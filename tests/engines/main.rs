//! The policies for images in `manifests/engines`, tried by the engines themselves on images in a registry of this machine: run by `make
//! test-policies`, which builds Kyverno's command, the tester of policy-controller and cosign. Needs no cluster, and nothing leaves the
//! machine. The policies for pods are tried with the plans of the controller.

#![allow(clippy::unwrap_used, clippy::panic, reason = "an unexpected result ends the test")]

use std::{
    collections::BTreeMap,
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use codex_tests::{
    Result, install,
    process::{Beside, free_port, output},
    wait::until_found,
};
use serde::Deserialize as _;
use serde_json::{Value, json};

const TARGET: &str = "test-policies";
/// The time limit of the registry's start.
const STARTED: Duration = Duration::from_secs(30);
/// Nothing answers there: a request to another machine fails.
const NOWHERE: &str = "http://127.0.0.1:9";
/// The registry and the key in the samples.
const SAMPLE_REGISTRY: &str = "registry.example.com";
const SAMPLE_KEY: &str = "REPLACE WITH THE KEY THAT SIGNED THE IMAGES";

/// A registry, images and keys.
struct Images {
    host: String,
    folder: tempfile::TempDir,
    _registry: Beside,
}

/// How cosign attaches a signature to an image.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    /// A bundle that refers to the image: what cosign 3 does by default.
    Bundle,
    /// An image with a tag made of the digest: what cosign 2 did.
    Tag,
}

impl Images {
    async fn new() -> Result<Self> {
        let port = free_port("127.0.0.1")?;
        let host = format!("127.0.0.1:{port}");
        let registry = Beside::start("DOCKER_REGISTRY", TARGET, |command, folder| {
            let config = json!({
                "version": 0.1,
                "storage": { "filesystem": { "rootdirectory": folder.join("images") } },
                "http": { "addr": host },
            });
            fs::write(folder.join("config.yaml"), config.to_string()).unwrap();
            command.args(["serve", "config.yaml"]);
            Ok(())
        })?;
        until_found("the registry answers", STARTED, async || Ok(TcpStream::connect(&host).ok())).await?;
        let images = Self { host, folder: tempfile::tempdir().unwrap(), _registry: registry };
        for name in ["ours", "theirs"] {
            output(images.program("COSIGN").args(["generate-key-pair", "--output-key-prefix", name]))?;
        }
        Ok(images)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Returns a program that an environment variable names, in this folder and without a way to other machines.
    fn program(&self, variable: &str) -> Command {
        let program =
            std::env::var_os(variable).unwrap_or_else(|| panic!("{variable} is not set: run `make {TARGET}`"));
        let mut command = Command::new(program);
        command.current_dir(self.folder.path()).env("HOME", self.folder.path()).env("COSIGN_PASSWORD", "");
        command.env("HTTP_PROXY", NOWHERE).env("HTTPS_PROXY", NOWHERE);
        command
    }

    /// Pushes an image with this label to a repository, and returns its name with its digest.
    fn push(&self, repository: &str, label: &str) -> Result<String> {
        fs::write(self.at("Dockerfile"), format!("FROM scratch\nLABEL name={label}\n")).unwrap();
        let buildah = |arguments: &[&str]| {
            let mut buildah = Command::new("buildah");
            buildah.args(["--storage-driver=vfs", "--root=storage", "--runroot=run"]).args(arguments);
            output(buildah.current_dir(self.folder.path()))
        };
        buildah(&["bud", "--quiet", "--isolation=chroot", "--tag", label, "--file=Dockerfile", "."])?;
        let name = format!("{}/{repository}", self.host);
        let tagged = format!("docker://{name}:{label}");
        buildah(&["push", "--quiet", "--tls-verify=false", "--digestfile=digest", label, &tagged])?;
        Ok(format!("{name}@{}", fs::read_to_string(self.at("digest")).unwrap().trim()))
    }

    fn sign(&self, image: &str, key: &str, format: Format) -> Result<()> {
        let mut cosign = self.program("COSIGN");
        cosign.args(["sign", "--yes", "--allow-http-registry", "--key", &format!("{key}.key")]);
        match format {
            // Without services: the signature is in no transparency log.
            Format::Bundle => {
                let config = json!({ "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json" });
                fs::write(self.at("services.json"), config.to_string()).unwrap();
                cosign.arg("--signing-config=services.json")
            }
            Format::Tag => {
                cosign.args(["--new-bundle-format=false", "--use-signing-config=false", "--tlog-upload=false"])
            }
        };
        output(cosign.arg(image)).map(drop)
    }

    /// Reads the objects of a sample, with this registry and the key `ours` in place of the placeholders.
    fn sample(&self, name: &str) -> Vec<Value> {
        let file = install::repository().join("manifests/engines").join(name);
        let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let key = fs::read_to_string(self.at("ours.pub")).unwrap();
        let key: String = key.lines().filter(|line| !line.starts_with("-----")).collect();
        let text = text.replace(SAMPLE_REGISTRY, &self.host).replace(SAMPLE_KEY, &key);
        serde_yaml::Deserializer::from_str(&text).map(|it| Value::deserialize(it).unwrap()).collect()
    }
}

/// Writes a policy into the folder of the images.
fn write(images: &Images, name: &str, objects: &[Value]) -> PathBuf {
    let documents: Vec<_> = objects.iter().map(Value::to_string).collect();
    let text = format!("---\n{}\n", documents.join("\n---\n"));
    let file = images.at(name);
    fs::write(&file, text).unwrap();
    file
}

/// Lets policy-controller judge an image. Returns what it says.
fn policy_controller(images: &Images, policy: &Path, image: &str) -> Result<String> {
    let mut tester = images.program("POLICY_TESTER");
    output(tester.args(["--log-level=error", "--image", image, "--policy"]).arg(policy))
}

#[tokio::test]
async fn policy_controller_admits_images_that_the_key_signed() -> Result<()> {
    let images = Images::new().await?;
    let sample = images.sample("policy-controller.yaml");
    let policy = write(&images, "policy.yaml", &sample);
    // Of several authorities that refuse an image, policy-controller says why one does, whichever it is.
    let mut by_key = sample;
    for object in &mut by_key {
        object["spec"]["authorities"].as_array_mut().unwrap().retain(|authority| authority["name"] == "key");
    }
    let by_key = write(&images, "by-key.yaml", &by_key);
    let signed = images.push("codex/codex", "signed")?;
    images.sign(&signed, "ours", Format::Tag)?;
    policy_controller(&images, &policy, &signed)?;
    let controller = images.push("codex/codex-controller", "signed")?;
    images.sign(&controller, "ours", Format::Tag)?;
    policy_controller(&images, &policy, &controller)?;

    let refused = |image: &str, why: &str| {
        policy_controller(&images, &policy, image).unwrap_err();
        let error = policy_controller(&images, &by_key, image).unwrap_err().to_string();
        assert!(error.contains(why), "{image} must be refused because of `{why}`: {error}");
    };
    refused(&images.push("codex/codex", "unsigned")?, "no signatures found");
    let theirs = images.push("codex/codex", "theirs")?;
    images.sign(&theirs, "theirs", Format::Tag)?;
    refused(&theirs, "signature key validation failed");
    // If this is admitted one day, the sample no longer has to ask for the other format.
    let bundled = images.push("codex/codex", "bundled")?;
    images.sign(&bundled, "ours", Format::Bundle)?;
    refused(&bundled, "no signatures found");
    // The tester refuses what no policy is about. In a cluster, that is a setting of the controller.
    refused(&images.push("elsewhere/codex", "signed")?, "is uncovered by policy");

    let placeholder = install::repository().join("manifests/engines/policy-controller.yaml");
    let error = policy_controller(&images, &placeholder, &signed).unwrap_err().to_string();
    assert!(error.contains("spec.authorities[0].key.data"), "the placeholder is no key: {error}");
    Ok(())
}

/// Lets Kyverno judge pods, each with these images of containers and init containers. Returns what it says of each pod: `pass`, or why it
/// refuses the pod.
fn kyverno(images: &Images, policy: &Path, pods: &[(&str, &[&str], &[&str])]) -> BTreeMap<String, String> {
    let containers = |images: &[&str]| -> Value {
        images
            .iter()
            .enumerate()
            .map(|(number, image)| json!({ "name": format!("it-{number}"), "image": image }))
            .collect()
    };
    let pods: Vec<_> = pods
        .iter()
        .map(|(name, first, then)| {
            let labels = json!({ "app.kubernetes.io/part-of": "codex" });
            json!({
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": { "name": name, "namespace": "team", "labels": labels },
                "spec": { "containers": containers(first), "initContainers": containers(then) },
            })
        })
        .collect();
    let resources = write(images, "pods.yaml", &pods);
    let mut kyverno = images.program("KYVERNO");
    kyverno.arg("apply").arg(policy).arg("--resource").arg(resources);
    let ended =
        kyverno.args(["--registry", "--policy-report", "--output-format=json", "--remove-color"]).output().unwrap();
    let told = String::from_utf8_lossy(&ended.stdout);
    let mut results = BTreeMap::new();
    for report in told.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        for result in report["results"].as_array().into_iter().flatten() {
            let [name, result, message] =
                [&result["resources"][0]["name"], &result["result"], &result["message"]].map(|it| it.as_str().unwrap());
            let said = if result == "pass" { result } else { message };
            results.insert(name.to_owned(), said.to_owned());
        }
    }
    assert_eq!(results.len(), pods.len(), "{told}{}", String::from_utf8_lossy(&ended.stderr));
    results
}

#[tokio::test]
async fn kyverno_admits_images_that_the_key_signed() -> Result<()> {
    const UNSIGNED: &str = "the image of a Codex pod must be signed";
    let images = Images::new().await?;
    let mut objects = images.sample("kyverno.yaml");
    objects.retain(|object| object["kind"] == "ImageValidatingPolicy");
    // The signatures are in no transparency log.
    objects[0]["spec"]["attestors"][0]["cosign"]["ctlog"] = json!({ "insecureIgnoreTlog": true });
    let policy = write(&images, "policy.yaml", &objects);
    let [bundled, tagged, theirs, unsigned] = [
        images.push("codex/codex", "bundled")?,
        images.push("codex/codex-controller", "tagged")?,
        images.push("codex/codex", "theirs")?,
        images.push("codex/codex", "unsigned")?,
    ];
    images.sign(&bundled, "ours", Format::Bundle)?;
    images.sign(&tagged, "ours", Format::Tag)?;
    images.sign(&theirs, "theirs", Format::Bundle)?;
    let proxy = images.push("elsewhere/proxy", "unsigned")?;
    let by_tag = format!("{}/codex/codex:bundled", images.host);
    let found = kyverno(
        &images,
        &policy,
        &[
            ("bundled", &[&bundled], &[]),
            ("tagged", &[&tagged], &[]),
            ("with-a-sidecar", &[&proxy, &bundled], &[]),
            ("initialised", &[&bundled], &[&tagged]),
            ("unsigned", &[&unsigned], &[]),
            ("theirs", &[&theirs], &[]),
            ("one-of-two", &[&bundled, &unsigned], &[]),
            ("unsigned-first", &[&bundled], &[&unsigned]),
            ("by-tag", &[&by_tag], &[]),
        ],
    );
    for admitted in ["bundled", "tagged", "with-a-sidecar", "initialised"] {
        assert_eq!(found[admitted], "pass", "{admitted}");
    }
    for refused in ["unsigned", "theirs", "one-of-two", "unsigned-first"] {
        assert_eq!(found[refused], UNSIGNED, "{refused}");
    }
    assert!(found["by-tag"].contains("does not have a digest"), "{}", found["by-tag"]);
    Ok(())
}
