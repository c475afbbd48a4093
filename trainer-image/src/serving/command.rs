//! The command line of `codex serve`, and the server that it describes.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::builder::PossibleValuesParser;
use codex_configs::Device;
use codex_provenance::{ModelDigest, PromotionDigest, Sha256, attestation::AttestationKind};
use codex_reports::ServingState;
use codex_signing::{
    keyless::{IdentityPattern, KeylessError},
    verify::Expected,
};
use codex_verdict::Ring;

use super::{
    LIMITS, MOST, ServeError, Server, Shutdown, Source, TRAFFIC,
    access::{self, Quota},
    capture, filter, listeners,
    room::Room,
    run_on_two_threads,
    thinking::Granted,
    tls,
    verified_load::{Paths, TrustedRoot},
};
use crate::{
    arguments::{socket_address, whole},
    error::CommandError,
    overlap::{self, Named},
    reporting::Reporter,
};

/// The arguments of a signed model.
const SIGNED: [&str; 13] = [
    "model",
    "model_digest",
    "oms_bundle",
    "promotion",
    "promotion_digest",
    "attestation",
    "public_key",
    "key_fingerprint",
    "certificate_identity",
    "certificate_oidc_issuer",
    "trusted_root",
    "trusted_root_digest",
    "ring",
];

/// Verify a model's signature, promotion and ring, then serve it over HTTP.
#[derive(Clone, Debug, clap::Args)]
pub struct Serve {
    /// Model directory to serve without a signature; needs --unsigned.
    #[arg(value_name = "DIR", requires = "unsigned", conflicts_with_all = SIGNED)]
    directory: Option<PathBuf>,
    /// Serve a model that nobody signed, to this machine only.
    #[arg(long, requires = "directory")]
    unsigned: bool,
    /// The model directory.
    #[arg(long, value_name = "DIR", required_unless_present = "unsigned")]
    model: Option<PathBuf>,
    /// Required digest of the model.
    #[arg(long, value_name = "HEX", required_unless_present = "unsigned")]
    model_digest: Option<ModelDigest>,
    /// The OMS signature bundle.
    #[arg(long, value_name = "FILE", required_unless_present = "unsigned")]
    oms_bundle: Option<PathBuf>,
    /// The promotion bundle.
    #[arg(long, value_name = "FILE", required_unless_present = "unsigned")]
    promotion: Option<PathBuf>,
    /// Required digest of the promotion statement.
    #[arg(long, value_name = "HEX", required_unless_present = "unsigned")]
    promotion_digest: Option<PromotionDigest>,
    /// An attestation that must be beside the promotion, with its kind: slsaProvenance, testResult, mlBom or verificationSummary. May
    /// be repeated. Each must be signed as the promotion is, and say what it says.
    #[arg(long, value_name = "KIND=FILE", value_parser = attestation)]
    pub(super) attestation: Vec<(AttestationKind, PathBuf)>,
    /// A public key that verifies a bundle, in PEM. May be repeated, if different keys signed the two bundles.
    #[arg(long, value_name = "FILE", required_unless_present_any = ["unsigned", "certificate_identity"])]
    public_key: Vec<PathBuf>,
    /// A fingerprint that public keys and identities may have. May be repeated; each must have one of them.
    #[arg(long, value_name = "HEX", required_unless_present = "unsigned")]
    key_fingerprint: Vec<Sha256>,
    /// An identity that may have signed with a certificate, such as
    /// `https://kubernetes.io/namespaces/codex-system/serviceaccounts/codex-controller`. May be repeated.
    #[arg(long, value_name = "SUBJECT", requires_all = ["certificate_oidc_issuer", "trusted_root"])]
    certificate_identity: Vec<String>,
    /// The issuer of that identity's tokens; one for each identity, in the same order.
    #[arg(long, value_name = "URL", requires = "certificate_identity")]
    certificate_oidc_issuer: Vec<String>,
    /// The trusted root that verifies certificates, log entries and timestamps, in JSON.
    #[arg(long, value_name = "FILE", requires_all = ["certificate_identity", "trusted_root_digest"])]
    trusted_root: Option<PathBuf>,
    /// Required SHA-256 of the trusted root.
    #[arg(long, value_name = "HEX", requires = "trusted_root")]
    trusted_root_digest: Option<Sha256>,
    /// The ring that the promotion must be for.
    #[arg(long, required_unless_present = "unsigned", value_parser = PossibleValuesParser::new(Ring::ALL.map(Ring::name)))]
    ring: Option<String>,
    /// Require an API key: a directory with a file for each key, such as a mounted Secret. It is read again every few seconds.
    #[arg(long, value_name = "DIR")]
    api_keys: Option<PathBuf>,
    /// The most requests of a key within a time, such as 30/60s, which is the default with --api-keys. Without keys, the most of
    /// all clients together.
    #[arg(long, value_name = "COUNT/TIME", value_parser = str::parse::<Quota>)]
    rate_limit: Option<Quota>,
    /// The most tokens of a key within a time, such as 1000000/1d, those of prompts included. Without keys, of all clients.
    #[arg(long, value_name = "COUNT/TIME", value_parser = str::parse::<Quota>)]
    token_budget: Option<Quota>,
    /// Seconds from the arrival of a request to the end of its response, at most; then it is answered with 504, and its generation
    /// ends. Without it, there is no limit.
    #[arg(long, value_name = "SECONDS", value_parser = whole::<u32>(1..=86_400))]
    request_timeout: Option<u32>,
    /// Tokens that a chat may reason before its reasoning is closed and the answer begins, unless the request says otherwise. Without
    /// it, reasoning may take all tokens of the response.
    #[arg(long, value_name = "TOKENS", value_parser = whole::<usize>(0..=1 << 40))]
    thinking_budget: Option<usize>,
    /// Tokens of the response of a chat that are kept for its answer: reasoning is closed before it takes them.
    #[arg(long, value_name = "TOKENS", default_value_t = 0, value_parser = whole::<usize>(0..=1 << 40))]
    answer_reserve: usize,
    /// Address and port to listen on.
    #[arg(long, default_value = "127.0.0.1:8000", value_parser = socket_address)]
    listen: SocketAddr,
    /// Address and port of a second listener, without TLS, that has /metrics, /ready and /status, for the cluster only. The first one then
    /// has neither /metrics nor /ready. /health is on both.
    #[arg(long, value_name = "ADDRESS", value_parser = socket_address)]
    admin_listen: Option<SocketAddr>,
    /// Where to compute; auto takes a GPU if this program was built with CUDA and finds one, else the processor.
    #[arg(long, default_value = "auto", value_parser = crate::device::parser())]
    device: Device,
    /// Number of requests that are generated at the same time.
    #[arg(long, visible_alias = "max-num-seqs", default_value_t = 8, value_parser = whole::<u16>(1..=MOST))]
    slots: u16,
    /// Number of requests that may wait; further ones are refused with 429.
    #[arg(long, visible_alias = "max-queued-requests", default_value_t = 64, value_parser = whole::<u16>(0..=MOST))]
    queue: u16,
    /// Tokens whose keys and values running requests have together, at most; at least a whole context. When they are full, the request
    /// that came last waits, and its tokens are computed again. Allows more --slots in the same memory [default: a whole context for
    /// each slot].
    #[arg(long, value_name = "TOKENS", value_parser = whole::<usize>(1..=1 << 40))]
    kv_cache: Option<usize>,
    /// Tokens whose keys and values are kept for later prompts that begin alike, over all idle slots; 0 keeps none.
    #[arg(long, value_name = "TOKENS", default_value_t = 16_384, value_parser = whole::<usize>(0..=1 << 40))]
    prefix_cache: usize,
    /// The most tokens that one step computes: one for each response, and chunks of prompts. Less lets long prompts delay other
    /// responses less; more processes them faster. At least --slots [default: 256, 2048 on a GPU, or --slots if that is more].
    #[arg(long, value_name = "TOKENS", value_parser = whole::<usize>(1..=1 << 20))]
    max_num_batched_tokens: Option<usize>,
    /// Check prompts and answers by these safety rules, in YAML. The file is read again every few seconds.
    #[arg(long, value_name = "FILE")]
    safety_rules: Option<PathBuf>,
    /// Append what safety rules hit to this file, as JSON lines without the texts; - is standard output.
    #[arg(long, value_name = "FILE", requires = "safety_rules")]
    safety_events: Option<PathBuf>,
    /// Append failures of the server to this file, as JSON lines without texts of requests or keys. At 4 MiB it is renamed to FILE.1, in
    /// place of an earlier one, and begins anew.
    #[arg(long, value_name = "FILE")]
    errors: Option<PathBuf>,
    /// Serve HTTPS with this certificate, in PEM, the server's own first. Both files are read again every few seconds.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_certificate: Option<PathBuf>,
    /// The private key of the certificate, in PEM.
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    tls_key: Option<PathBuf>,
    /// Report the numbers of requests to the controller, which analyses canaries.
    #[arg(long)]
    report_traffic: bool,
    /// Report to the controller when the last request ended; it stops servers that are idle.
    #[arg(long)]
    report_activity: bool,
    /// Send copies of answered requests to the shadows and the canary in FILE, which is read again every few seconds. While FILE is
    /// missing, no copies are sent.
    #[arg(long, value_name = "FILE", conflicts_with = "shadow")]
    mirror: Option<PathBuf>,
    /// Be a shadow: accept only copies of requests from the servers in FILE, and compare the answers. FILE is read again every few
    /// seconds.
    #[arg(long, value_name = "FILE")]
    shadow: Option<PathBuf>,
    /// Be a canary that is compared: besides answering clients, accept copies of requests from the servers in FILE, and compare the
    /// answers. Copies take at most half of the slots, and none that requests need. FILE is read again every few seconds.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["mirror", "shadow"])]
    compare: Option<PathBuf>,
    #[command(flatten)]
    capture: capture::Arguments,
    /// Name of the model in the OpenAI-shaped API; the beginning of its digest by default.
    #[arg(long, value_name = "NAME", env = "CODEX_OBJECT_NAME")]
    name: Option<String>,
    /// Seconds after SIGTERM in which the server is unready but accepts requests, until endpoints are updated.
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = whole::<u16>(0..=MOST))]
    drain_delay: u16,
    /// Seconds that running requests then have to finish.
    #[arg(long, value_name = "SECONDS", default_value_t = 50, value_parser = whole::<u16>(0..=MOST))]
    drain_deadline: u16,
}

/// Reads a kind of attestation and the path of its bundle.
fn attestation(text: &str) -> Result<(AttestationKind, PathBuf), String> {
    let (kind, path) = text.split_once('=').ok_or("write KIND=FILE, such as testResult=test-result.json")?;
    if path.is_empty() { Err("the path after = is empty".to_owned()) } else { Ok((kind.parse()?, path.into())) }
}

impl Serve {
    /// Serves until SIGTERM or Ctrl-C.
    ///
    /// # Errors
    /// The model is refused or cannot be loaded (exit code 2); the address is unavailable, or requests did not finish in time
    /// (exit code 1).
    pub fn run(self) -> Result<i32, CommandError> {
        let reporter = Arc::new(Reporter::<ServingState>::from_env().map_err(CommandError::bad_input)?);
        run_on_two_threads(self.serve(&reporter))
    }

    /// Returns the identities that may have signed.
    pub(super) fn identities(&self) -> Result<Vec<IdentityPattern>, ServeError> {
        let (subjects, issuers) = (&self.certificate_identity, &self.certificate_oidc_issuer);
        if subjects.len() != issuers.len() {
            return Err(ServeError::Identities { subjects: subjects.len(), issuers: issuers.len() });
        }
        let patterns = issuers.iter().zip(subjects).map(|(issuer, subject)| IdentityPattern::new(issuer, subject));
        Ok(patterns.collect::<Result<_, _>>().map_err(KeylessError::from)?)
    }

    /// Checks that no file that the server appends to is in the model or another input: the next start would refuse it.
    fn check_overlap(&self) -> Result<(), ServeError> {
        let named = |files: &[(&str, Option<&PathBuf>)]| {
            files.iter().filter_map(|(role, path)| Some(Named::new(*role, *path.as_ref()?))).collect::<Vec<_>>()
        };
        let events = self.safety_events.as_ref().filter(|path| *path != Path::new("-"));
        let outputs =
            [("--trace-store", self.capture.store()), ("--errors", self.errors.as_ref()), ("--safety-events", events)];
        let inputs = [
            ("DIR", self.directory.as_ref()),
            ("--model", self.model.as_ref()),
            ("--oms-bundle", self.oms_bundle.as_ref()),
            ("--promotion", self.promotion.as_ref()),
            ("--safety-rules", self.safety_rules.as_ref()),
        ];
        Ok(overlap::check(&named(&outputs), &named(&inputs))?)
    }

    async fn serve(self, reporter: &Arc<Reporter<ServingState>>) -> Result<(), ServeError> {
        let stop = Shutdown::on_signals()?;
        if self.unsigned && !self.listen.ip().is_loopback() {
            return Err(ServeError::Public(self.listen));
        }
        let slots = usize::from(self.slots);
        if let Some(tokens) = self.max_num_batched_tokens.filter(|tokens| *tokens < slots) {
            return Err(ServeError::Budget { tokens, slots });
        }
        self.check_overlap()?;
        let (listener, admin) = listeners(self.listen, self.admin_listen).await?;
        let identities = self.identities()?;
        let Some(server) = Server::of(self, identities) else { return Err(ServeError::Arguments) };
        let server = Server { admin, ..server };
        let outcome = server.run(listener, reporter, &stop).await;
        // After the drain deadline there is no time left for a final report.
        if let Err(error) = &outcome
            && !matches!(error, ServeError::CutOff { .. })
        {
            reporter.fail(error.failure());
            let (reporter, code) = (Arc::clone(reporter), error.exit());
            // The reporter logs whether the report was delivered.
            drop(tokio::task::spawn_blocking(move || reporter.finish(code)).await);
        }
        outcome
    }
}

impl Server {
    /// Returns `None` if an argument is missing, which the command line does not allow.
    pub(super) fn of(arguments: Serve, identities: Vec<IdentityPattern>) -> Option<Self> {
        let source = match arguments.directory {
            Some(directory) => Source::Unsigned(directory),
            None => Source::Signed {
                paths: Paths {
                    model: arguments.model?,
                    oms_bundle: arguments.oms_bundle?,
                    promotion: arguments.promotion?,
                    attestations: arguments.attestation,
                    public_keys: arguments.public_key,
                    identities,
                    trusted_root: arguments
                        .trusted_root
                        .zip(arguments.trusted_root_digest)
                        .map(|(path, digest)| TrustedRoot { path, digest }),
                },
                expected: Expected {
                    model_digest: arguments.model_digest?,
                    key_fingerprints: arguments.key_fingerprint,
                    ring: arguments.ring?,
                    promotion_digest: arguments.promotion_digest?,
                },
            },
        };
        Some(Self {
            source,
            admin: None,
            access: access::Settings {
                keys: arguments.api_keys,
                rate: arguments.rate_limit,
                tokens: arguments.token_budget,
            },
            filter: filter::Settings { rules: arguments.safety_rules, events: arguments.safety_events },
            tls: arguments
                .tls_certificate
                .zip(arguments.tls_key)
                .map(|(certificate, key)| tls::Settings { certificate, key }),
            reload: access::RELOAD,
            time_limit: arguments.request_timeout.map(|seconds| Duration::from_secs(seconds.into())),
            device: arguments.device,
            room: Room {
                running: arguments.slots.into(),
                queue: arguments.queue.into(),
                cache: arguments.kv_cache,
                prefixes: arguments.prefix_cache,
                batched: arguments.max_num_batched_tokens,
            },
            granted: Granted { budget: arguments.thinking_budget, reserve: arguments.answer_reserve },
            drain_delay: Duration::from_secs(arguments.drain_delay.into()),
            drain_deadline: Duration::from_secs(arguments.drain_deadline.into()),
            limits: LIMITS,
            traffic: arguments.report_traffic.then_some(TRAFFIC),
            activity: arguments.report_activity,
            mirror: arguments.mirror,
            shadow: arguments.shadow,
            compare: arguments.compare,
            compared: TRAFFIC,
            capture: arguments.capture.settings(),
            errors: arguments.errors,
            name: arguments.name,
        })
    }
}
