//! CEL rules of the CRDs. Each message names the field, the value found and the values allowed. Pure.

use codex_verdict::cel;
use kube::core::{Message, Rule};

/// Returns a rule on a string `field`; `form` describes the values that it allows.
pub(crate) fn text(field: &str, rule: &str, form: &str) -> Rule {
    refuses(field, "self", rule, form)
}

/// Returns the rule on the name of a custom resource.
pub(crate) fn name() -> Rule {
    refuses(
        "metadata.name",
        "self.metadata.name",
        "self.metadata.name.size() <= 52 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        "at most 52 characters, lower-case letters, digits and inner dashes, with a letter first, because Jobs and Services \
         are named after it",
    )
}

/// Returns the rule on a `field` that names another object. It accepts what [`crate::is_subdomain`] accepts; `example` is
/// such a name.
pub(crate) fn subdomain(field: &str, example: &str) -> Rule {
    text(
        field,
        "self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')",
        &format!("lower-case letters, digits, inner dashes and inner dots, such as {example}"),
    )
}

/// Returns the rule on a `field` that holds a number within a time.
pub(crate) fn quota(field: &str, example: &str) -> Rule {
    text(
        field,
        "self.matches('^[1-9][0-9]{0,11}/([1-9][0-9]{0,5}s|[1-9][0-9]{0,3}m|([1-9][0-9]?|[1-6][0-9]{2}|7[0-3][0-9]|74[0-4])h|([1-9]|[12][0-9]|3[01])d)$')",
        &format!("a number, a slash and a time of at most 999999s, 9999m, 744h or 31d, such as {example}"),
    )
}

/// Returns the rule on a `field` that holds seconds as a decimal above 0.
pub(crate) fn seconds(field: &str, example: &str) -> Rule {
    text(
        field,
        "self.matches('^(0|[1-9][0-9]{0,4})([.][0-9]{1,3})?$') && self.matches('[1-9]')",
        &format!("seconds above 0 and below 100000, with at most three decimals, such as {example}"),
    )
}

/// Returns the rule on the limit of the time to the first token, which is within the edges of its histogram.
pub(crate) fn first_token_seconds() -> Rule {
    text(
        "spec.rollout.analysis.maxFirstTokenSeconds",
        "self.matches('^(([0-9]|[12][0-9])([.][0-9]{1,3})?|30([.]0{1,3})?)$') && self.matches('[1-9]')",
        "seconds above 0 and at most 30, with at most three decimals, such as 0.5",
    )
}

/// Returns the rule on the limit of the time between tokens, which is within the edges of its histogram.
pub(crate) fn inter_token_seconds() -> Rule {
    text(
        "spec.rollout.analysis.maxInterTokenSeconds",
        "self.matches('^([01]([.][0-9]{1,3})?|2([.]([0-4][0-9]{0,2}|50{0,2}))?)$') && self.matches('[1-9]')",
        "seconds above 0 and at most 2.5, with at most three decimals, such as 0.05",
    )
}

/// Returns the rule on a `field` that holds a share as a decimal.
pub(crate) fn share(field: &str, example: &str) -> Rule {
    let form = format!("a decimal from 0 to 1 with at most six decimals, such as {example}");
    text(field, "self.matches('^(0([.][0-9]{1,6})?|1([.]0{1,6})?)$')", &form)
}

/// Returns the rule on the `cron` of a schedule: the number of fields and their letters. What the fields say is checked by the controller.
pub(crate) fn cron() -> Rule {
    text(
        "schedule.cron",
        "self.matches('^(@(hourly|daily|midnight|weekly|monthly|yearly|annually)|[-0-9A-Za-z*/,#]+( +[-0-9A-Za-z*/,#]+){4})$')",
        "five fields (minute, hour, day of the month, month, day of the week), such as 0 3 * * 1, or one of @hourly, @daily, \
         @weekly, @monthly and @yearly; the time zone is schedule.timeZone",
    )
}

/// Returns the rule on the `timeZone` of a schedule.
pub(crate) fn time_zone() -> Rule {
    text(
        "schedule.timeZone",
        "self.matches('^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z][A-Za-z0-9_+-]*)*$') && self != 'Local'",
        "the name of a time zone in the IANA database, such as Etc/UTC or Europe/Berlin",
    )
}

/// Returns the rule on the `concurrencyPolicy` of a schedule. It is a rule, because the answer to a value outside of an enumeration
/// cannot say why Allow, the default of `CronJob`s, is missing.
pub(crate) fn concurrency_policy() -> Rule {
    text(
        "schedule.concurrencyPolicy",
        "self in ['Forbid', 'Replace']",
        "Forbid or Replace; Allow is not supported, because runs that overlap would share one status and one verdict",
    )
}

/// Returns the rule that a schedule of cycles never replaces one that is at work.
pub(crate) fn no_replaced_cycles() -> Rule {
    Rule::new("!has(self.concurrencyPolicy) || self.concurrencyPolicy != 'Replace'").message(
        "spec.redeploy.schedule.concurrencyPolicy must be Forbid, because a cycle that trains or rolls out is not ended by the next one: \
         remove it; spec.redeploy.template.trainingRun.activeDeadlineSeconds bounds the time that training takes",
    )
}

/// Returns the rule on the name of a repeated Evaluation, whose Jobs have the number of the run in their names. The name of an object is
/// known only at its root.
pub(crate) fn scheduled_name() -> Rule {
    Rule::new("!has(self.spec.schedule) || self.metadata.name.size() <= 44").message(
        "metadata.name of an Evaluation with spec.schedule has at most 44 characters, because Jobs are named after it and the number of \
         the run: use a shorter name",
    )
}

/// Returns the rule that servers request the CPU whose utilization they are scaled by.
pub(crate) fn scaled_by_cpu() -> Rule {
    let has = |list: &str| format!("(has(self.pod.resources.{list}) && 'cpu' in self.pod.resources.{list})");
    let scaled = "has(self.autoscaling) && (has(self.autoscaling.targetCPUUtilizationPercentage) || !has(self.autoscaling.metrics))";
    let requests = format!("has(self.pod) && has(self.pod.resources) && ({} || {})", has("requests"), has("limits"));
    Rule::new(format!("!({scaled}) || ({requests})")).message(
        "spec.autoscaling scales by CPU utilization, and spec.pod.resources requests no CPU: set spec.pod.resources.requests.cpu, or \
         set spec.autoscaling.metrics without targetCPUUtilizationPercentage",
    )
}

/// Whether the servers encrypt requests.
const TLS: &str = "(has(self.serving) && has(self.serving.tls))";

/// Returns the rule that a ReasoningPod is not its own shadow. The name of an object is known only at its root.
pub(crate) fn own_shadow() -> Rule {
    Rule::new("!has(self.spec.shadow) || self.spec.shadow.of != self.metadata.name")
        .message("spec.shadow.of is the ReasoningPod itself: name another ReasoningPod, whose requests are copied")
}

/// What `spec.serving` grants clients.
const OF_CLIENTS: [&str; 8] = [
    "apiKeys",
    "tls",
    "rateLimit",
    "tokenBudget",
    "requestTimeoutSeconds",
    "thinkingBudget",
    "answerReserve",
    "safety",
];

/// Returns the rule that a shadow has nothing that is only of use to servers with clients.
pub(crate) fn shadow() -> Rule {
    let has = |field: &&str| format!("has(self.serving.{field})");
    let granted = OF_CLIENTS.iter().map(has).collect::<Vec<_>>().join(" || ");
    let rule = format!(
        "!has(self.shadow) || !(has(self.autoscaling) || has(self.rollout) || (has(self.serving) && ({granted})))"
    );
    let message = format!(
        "spec.shadow excludes spec.autoscaling, spec.rollout and spec.serving.{}, because a shadow has no clients: remove them, or \
         remove spec.shadow",
        OF_CLIENTS.join(", spec.serving.")
    );
    Rule::new(rule).message(message.as_str())
}

/// Returns the rule that a step of the engine has a token for each running request.
pub(crate) fn batched_tokens() -> Rule {
    Rule::new(
        "!has(self.maxNumBatchedTokens) || self.maxNumBatchedTokens >= (has(self.maxNumSeqs) ? self.maxNumSeqs : 8)",
    )
    .message(
        "spec.serving.maxNumBatchedTokens must be at least spec.serving.maxNumSeqs, which is 8 by default, because each running request \
         has one token in a step: raise maxNumBatchedTokens or lower maxNumSeqs",
    )
}

/// Returns the rule that servers behind a Gateway speak plain HTTP, as an HTTPRoute does to its Services.
pub(crate) fn no_encrypted_gateway() -> Rule {
    Rule::new(format!("!{TLS} || !has(self.rollout) || !has(self.rollout.gateway)")).message(
        "spec.serving.tls excludes spec.rollout.gateway, because a Gateway sends plain HTTP to the servers: end TLS at the Gateway and \
         remove spec.serving.tls, or remove spec.rollout.gateway",
    )
}

/// Returns the rule that servers which stop while idle have nothing that needs one at all times, or that an activator cannot hold.
pub(crate) fn stops_while_idle() -> Rule {
    let stops = "has(self.autoscaling) && self.autoscaling.minReplicas == 0";
    Rule::new(format!("!({stops}) || !(has(self.rollout) || has(self.redeploy) || {TLS})")).message(
        "spec.autoscaling.minReplicas 0 excludes spec.rollout and spec.redeploy, which need a server that verifies the new model, and \
         spec.serving.tls, because the activator holds requests without encryption: remove them, or set spec.autoscaling.minReplicas \
         to 1 or more",
    )
}

/// Returns the rule that requests which are encrypted are not copied to the shadow of a cycle.
pub(crate) fn no_encrypted_shadow() -> Rule {
    Rule::new(format!("!{TLS} || !has(self.redeploy) || !has(self.redeploy.shadow)")).message(
        "spec.serving.tls excludes spec.redeploy.shadow, because copies of requests are not encrypted: end TLS at a gateway or a service \
         mesh and remove spec.serving.tls, or remove spec.redeploy.shadow",
    )
}

/// Returns the rule that requests which are encrypted are not copied to a canary.
pub(crate) fn no_encrypted_agreement() -> Rule {
    Rule::new(format!(
        "!{TLS} || !has(self.rollout) || !has(self.rollout.analysis) || !has(self.rollout.analysis.agreement)"
    ))
    .message(
        "spec.serving.tls excludes spec.rollout.analysis.agreement, because copies of requests are not encrypted: end TLS at a gateway or \
         a service mesh and remove spec.serving.tls, or remove spec.rollout.analysis.agreement",
    )
}

/// Returns the rule that a rollout which compares answers has a step in which the present servers answer.
pub(crate) fn compared_step() -> Rule {
    Rule::new("!has(self.analysis) || !has(self.analysis.agreement) || self.steps.exists(step, step < 100)").message(
        "spec.rollout.analysis.agreement needs a step below 100, because at 100 the present servers answer no requests that could be \
         copied: write spec.rollout.steps [5, 25, 50, 100], or remove spec.rollout.analysis.agreement",
    )
}

/// Returns the rule that a ReasoningPod names what it serves, or trains it.
pub(crate) fn served() -> Rule {
    Rule::new("(has(self.redeploy) || has(self.trainingRun)) && has(self.trainingRun) == has(self.evaluations)").message(
        "spec must name what is served: set spec.trainingRun and spec.evaluations, or with spec.redeploy neither of them, to serve \
         nothing until the first cycle is promoted",
    )
}

/// Returns the rule that cycles train for the ring in which their models are served.
pub(crate) fn redeployed_ring() -> Rule {
    Rule::new("!has(self.redeploy) || self.redeploy.template.trainingRun.rolloutRing == self.rolloutRing").message(
        "spec.redeploy.template.trainingRun.rolloutRing and spec.rolloutRing differ: set both to the same ring in one change",
    )
}

/// Returns the rule that a shadow does not redeploy.
pub(crate) fn no_redeployed_shadow() -> Rule {
    Rule::new("!has(self.redeploy) || !has(self.shadow)").message(
        "spec.shadow excludes spec.redeploy, because a shadow is not promoted: put spec.redeploy into the ReasoningPod that is shadowed, \
         or remove spec.shadow",
    )
}

/// Returns the rule on the name of a ReasoningPod with cycles, whose objects have the time of the cycle in their names. The name of an
/// object is known only at its root.
pub(crate) fn redeployed_name() -> Rule {
    Rule::new("!has(self.spec.redeploy) || self.metadata.name.size() <= 27").message(
        "metadata.name of a ReasoningPod with spec.redeploy has at most 27 characters, because the objects of its cycles are named after \
         it and the time: use a shorter name",
    )
}

/// Returns the rule on a `digest` of a model.
pub(crate) fn digest() -> Rule {
    text(
        "digest",
        "self.matches('^[0-9a-f]{64}$')",
        "64 lower-case hexadecimal digits, as status.base.digest and status.model.digest have them",
    )
}

/// Returns the rule that a TrainingRun is not its own base. The name of an object is known only at its root.
pub(crate) fn own_base() -> Rule {
    Rule::new(
        "!has(self.spec.base) || !has(self.spec.base.trainingRun) || self.spec.base.trainingRun.name != self.metadata.name",
    )
    .message("spec.base.trainingRun.name is the TrainingRun itself: name another TrainingRun")
}

/// Returns the rule that a TrainingRun does not reproduce itself. The name of an object is known only at its root.
pub(crate) fn own_reproduction() -> Rule {
    Rule::new("!has(self.spec.reproduces) || self.spec.reproduces.name != self.metadata.name")
        .message("spec.reproduces.name is the TrainingRun itself: name another TrainingRun")
}

/// Returns the rule that a run which reproduces another one has no image of its own.
pub(crate) fn image_of_reproduction() -> Rule {
    Rule::new("!has(self.reproduces) || !has(self.pod) || !has(self.pod.image)").message(
        "spec.pod.image must be absent with spec.reproduces, because the image is that of the run that is reproduced: remove it",
    )
}

/// Returns the rule that `spec.reproduces` keeps its meaning.
pub(crate) fn same_reproduces(why: &str) -> Rule {
    let name = |of: &str| format!("(has({of}.reproduces) ? {of}.reproduces.name : '')");
    Rule::new(format!("{} == {}", name("self"), name("oldSelf")))
        .message(Message::Message(format!("spec.reproduces {why}")))
}

/// Returns the rule that no gate of an Evaluation compares it with itself. The name of an object is known only at its root.
pub(crate) fn own_reference() -> Rule {
    let own = |field: &str| format!("(has(gate.{field}) && gate.{field}.evaluation == self.metadata.name)");
    let rule = format!("!self.spec.gates.exists(gate, {} || {})", own("betterThan"), own("notWorseThan"));
    Rule::new(rule).message("spec.gates[] compares the Evaluation with itself: name another Evaluation")
}

/// Returns the rule on changes of `spec.rolloutRing`.
pub(crate) fn ring() -> Rule {
    of_kube(cel::ring())
}

/// Returns the expression that a field of `pod` is equal in the specs `new` and `old`. It may be absent or `empty`.
fn same_or(new: &str, old: &str, field: &str, empty: &str) -> String {
    let value = |of: &str| format!("(has({of}.pod.{field}) ? {of}.pod.{field} : {empty})");
    format!("{} == {}", value(new), value(old))
}

/// Returns the rule that `spec.pod` keeps its meaning. `kind` names the object.
pub(crate) fn same_pod(kind: &str) -> Rule {
    Rule::new(same_worker("self", "oldSelf").join(" && "))
        .message(Message::Message(format!("spec.pod is immutable: create another {kind}")))
}

/// Returns the rule that image and environment of a trainer are immutable.
pub(crate) fn same_program() -> Rule {
    let rules = [same_or("self", "oldSelf", "image", "''"), same_or("self", "oldSelf", "env", "[]")];
    Rule::new(rules.join(" && ")).message(
        "spec.pod.image and spec.pod.env are immutable, because they decide what is trained: create another TrainingRun",
    )
}

/// Returns the rule that resources and placement of a trainer's pod are immutable once a pod has started. It reads the status, so it is a
/// rule of the whole object.
pub(crate) fn same_pod_once_started() -> Rule {
    let (new, old) = ("self.spec", "oldSelf.spec");
    let same = same_worker(new, old).join(" && ");
    Rule::new(format!("!has(oldSelf.status) || !has(oldSelf.status.startedAt) || ({same})"))
        .message("spec.pod is immutable once a pod has started (status.startedAt): create another TrainingRun")
}

/// Returns the expressions that resources, placement and ids of a pod have the same meaning in the specs `new` and `old`.
fn same_worker(new: &str, old: &str) -> Vec<String> {
    // Each list and map may be absent or empty, each object absent or without fields.
    let or = |field: &str, empty: &str| same_or(new, old, field, empty);
    let list = |field: &str| {
        let (parent, _) = field.split_once('.').unwrap_or_default();
        let value = |of: &str| format!("(has({of}.pod.{parent}) && has({of}.pod.{field}) ? {of}.pod.{field} : [])");
        format!("{} == {}", value(new), value(old))
    };
    let inner = |field: &str| {
        let (parent, _) = field.split_once('.').unwrap_or_default();
        let has = |of: &str| format!("(has({of}.pod.{parent}) && has({of}.pod.{field}))");
        let (has_new, has_old) = (has(new), has(old));
        format!("{has_new} == {has_old} && (!{has_new} || {new}.pod.{field} == {old}.pod.{field})")
    };
    // 100m and 0.1 are one quantity. What is no quantity must stay as it is written. Each size is known from the path of a value,
    // so that the API server can estimate the cost of the rule.
    let quantities = |list: &str| {
        let of = |of: &str| format!("{of}.pod.resources.{list}");
        let has = |of: &str| format!("has({of}.pod.resources) && has({of}.pod.resources.{list})");
        let (new, old, has_new, has_old) = (of(new), of(old), has(new), has(old));
        let (one, other) = (format!("string({new}[name])"), format!("string({old}[name])"));
        let equal = format!(
            "({one} == {other} || (isQuantity({one}) && isQuantity({other}) && quantity({one}).compareTo(quantity({other})) == 0))"
        );
        format!(
            "(!({has_new}) || {new}.all(name, {has_old} && name in {old} && {equal})) && (!({has_old}) || {old}.all(name, \
             {has_new} && name in {new}))"
        )
    };
    let mut rules =
        vec![quantities("limits"), quantities("requests"), or("nodeSelector", "{}"), or("tolerations", "[]")];
    rules.extend(["nodeAffinity", "podAffinity", "podAntiAffinity"].map(|field| inner(&format!("affinity.{field}"))));
    rules.extend(["priorityClassName", "runtimeClassName", "sharedMemory"].map(|field| or(field, "''")));
    rules.extend(["resourceClaims", "imagePullSecrets"].map(|field| or(field, "[]")));
    rules.extend(["runAsUser", "runAsGroup", "fsGroup"].map(|field| inner(&format!("securityContext.{field}"))));
    rules.extend(["resources.claims", "securityContext.supplementalGroups"].map(list));
    rules
}

/// Returns the rule that the folder `path` on a claim keeps its meaning: `runs`, `runs/` and `./runs` are one folder. `object`
/// is the field of the spec that holds the claim.
pub(crate) fn same_folder(object: &str, path: &str, why: &str) -> Rule {
    let claim = |of: &str| format!("{of}.{object}.persistentVolumeClaim");
    let (new, old) = (claim("self"), claim("oldSelf"));
    let parts = |of: &str| format!("{of}.{path}.split('/').filter(part, part != '' && part != '.')");
    let same = format!("{new}.claimName == {old}.claimName && {} == {}", parts(&new), parts(&old));
    let has = |of: &str| format!("(has({of}.{object}) && has({}))", claim(of));
    let (has_new, has_old) = (has("self"), has("oldSelf"));
    Rule::new(format!("{has_new} == {has_old} && (!{has_new} || ({same}))"))
        .message(Message::Message(format!("spec.{object} {why}")))
}

/// Returns the rule that `spec.base` keeps its meaning.
pub(crate) fn same_base(why: &str) -> Rule {
    let value = |of: &str, field: &str, inner: &str| {
        format!("(has({of}.base) && has({of}.base.{field}) ? {of}.base.{field}{inner} : '')")
    };
    let same =
        |field: &str, inner: &str| format!("{} == {}", value("self", field, inner), value("oldSelf", field, inner));
    let folder = same_folder("base", "path", why).rule;
    let whole = |field: &str| {
        let has = |of: &str| format!("(has({of}.base) && has({of}.base.{field}))");
        let (new, old) = (has("self"), has("oldSelf"));
        format!("{new} == {old} && (!{new} || self.base.{field} == oldSelf.base.{field})")
    };
    let rules = [same("trainingRun", ".name"), same("digest", ""), folder, whole("huggingFace"), whole("signedBy")];
    Rule::new(rules.join(" && ")).message(Message::Message(format!("spec.base {why}")))
}

/// Returns the rule that `spec.model` keeps its meaning.
pub(crate) fn same_model(why: &str) -> Rule {
    let digest = |of: &str| format!("(has({of}.model) && has({of}.model.digest) ? {of}.model.digest : '')");
    let folder = same_folder("model", "path", why).rule;
    Rule::new(format!("{} == {} && {folder}", digest("self"), digest("oldSelf")))
        .message(Message::Message(format!("spec.model {why}")))
}

/// Returns the rule that the text `field` of the spec keeps its meaning: absent and empty are the same.
pub(crate) fn same_text(field: &str, why: &str) -> Rule {
    let value = |of: &str| format!("(has({of}.{field}) ? {of}.{field} : '')");
    Rule::new(format!("{} == {}", value("self"), value("oldSelf")))
        .message(Message::Message(format!("spec.{field} {why}")))
}

fn refuses(field: &str, value: &str, rule: &str, form: &str) -> Rule {
    of_kube(cel::Rule::new(field, value, rule, form))
}

fn of_kube(rule: cel::Rule) -> Rule {
    Rule::new(rule.rule).message(Message::Expression(rule.message_expression))
}
