//! Makes Helm templates from the files that kustomize installs: each edit replaces a text that must be there.

use std::{collections::BTreeMap, fs, path::Path};

/// A text of a manifest, how often it occurs, and what stands in its place.
type Edit = (&'static str, usize, &'static str);

/// The namespace of the installation.
const NAMESPACE: Edit = ("namespace: codex-system\n", 1, "namespace: {{ .Release.Namespace }}\n");
/// The controller's service account as a user.
const USER: &str = "system:serviceaccount:codex-system:codex-controller";
const USER_OF_RELEASE: &str = "system:serviceaccount:{{ .Release.Namespace }}:codex-controller";

/// The templates by file name.
pub(crate) fn files(manifests: &Path) -> BTreeMap<String, String> {
    let read = |path: &str| fs::read_to_string(manifests.join(path)).unwrap();
    let mut files = BTreeMap::new();
    let mut add = |name: &str, content: String| {
        let from = "{{- /* Made from the files of manifests/: tests/chart/main.rs names the command. */ -}}\n";
        files.insert(name.to_owned(), format!("{from}{content}"));
    };
    add("service-account.yaml", edit(&read("controller/service-account.yaml"), SERVICE_ACCOUNT));
    add("rbac.yaml", rbac(&read("controller/rbac.yaml")));
    add("roles.yaml", read("controller/roles.yaml"));
    add("admission.yaml", admission(&read("controller/admission.yaml")));
    add("redeploy.yaml", when(".Values.admissionPolicies.enabled", &read("controller/redeploy.yaml")));
    add("deployment.yaml", edit(&read("controller/deployment.yaml"), DEPLOYMENT));
    let of_release = "namespace: {{ .Release.Namespace }}\n";
    add("service.yaml", edit(&read("controller/service.yaml"), &[(NAMESPACE.0, 2, of_release)]));
    for kind in
        ["trainingruns", "evaluations", "reasoningpods", "clusterpromotionpolicies", "promotionpolicies", "signoffs"]
    {
        let crd = edit(&escape(&read(&format!("crd/{kind}.yaml"))), CRD);
        add(&format!("crd-{kind}.yaml"), when(".Values.crds.enabled", &crd));
    }
    let monitors = edit(&read("monitoring/monitors.yaml"), MONITORS);
    add("monitors.yaml", when(".Values.monitoring.enabled", &monitors));
    let alerts = edit(&escape(&read("monitoring/alerts.yaml")), ALERTS);
    add("alerts.yaml", when(".Values.monitoring.enabled", &alerts));
    let dashboards = edit(&escape(&read("monitoring/dashboards.yaml")), DASHBOARDS);
    add("dashboards.yaml", when(".Values.monitoring.enabled", &dashboards));
    files
}

const SERVICE_ACCOUNT: &[Edit] = &[(
    "  namespace: codex-system\n",
    1,
    "  namespace: {{ .Release.Namespace }}\n  {{- with .Values.serviceAccount.annotations }}\n  annotations:\n    {{- toYaml . | nindent 4 }}\n  {{- end }}\n",
)];

const DEPLOYMENT: &[Edit] = &[
    NAMESPACE,
    ("\n  replicas: 1\n", 1, "\n  replicas: {{ .Values.replicas }}\n"),
    (
        "        prometheus.io/port: \"8080\"\n",
        1,
        "        prometheus.io/port: \"8080\"\n        {{- with .Values.podAnnotations }}\n        {{- toYaml . | nindent 8 }}\n        {{- end }}\n",
    ),
    (
        "    spec:\n      serviceAccountName",
        1,
        "    spec:\n      {{- with .Values.imagePullSecrets }}\n      imagePullSecrets:\n        {{- toYaml . | nindent 8 }}\n      {{- end }}\n      {{- with .Values.priorityClassName }}\n      priorityClassName: {{ . }}\n      {{- end }}\n      {{- with .Values.nodeSelector }}\n      nodeSelector:\n        {{- toYaml . | nindent 8 }}\n      {{- end }}\n      {{- with .Values.tolerations }}\n      tolerations:\n        {{- toYaml . | nindent 8 }}\n      {{- end }}\n      {{- with .Values.affinity }}\n      affinity:\n        {{- toYaml . | nindent 8 }}\n      {{- end }}\n      serviceAccountName",
    ),
    (
        "        runAsUser: 65532\n        runAsGroup: 65532\n",
        1,
        "        {{- if ne (toString .Values.runAs) \"platform\" }}\n        runAsUser: {{ toJson .Values.runAs }}\n        runAsGroup: {{ toJson .Values.runAs }}\n        {{- end }}\n",
    ),
    ("image: codex-controller:0.1.0\n", 1, "image: {{ .Values.images.controller }}\n"),
    ("imagePullPolicy: IfNotPresent\n", 1, "imagePullPolicy: {{ .Values.imagePullPolicy }}\n"),
    (
        "# The trainer image for TrainingRuns without spec.image.\n            - name: CODEX_TRAINER_IMAGE\n              value: codex:0.1.0\n",
        1,
        "# The trainer image for TrainingRuns without spec.image.\n            - name: CODEX_TRAINER_IMAGE\n              value: {{ .Values.images.trainer }}\n",
    ),
    (
        "value: codex:0.1.0\n          ports:",
        1,
        "value: {{ .Values.images.worker }}\n            {{- with .Values.images.cuda }}\n            - name: CODEX_CUDA_IMAGE\n              value: {{ . }}\n            {{- end }}\n            {{- if ne (toString .Values.runAs) \"65532\" }}\n            - name: CODEX_RUN_AS\n              value: {{ if eq (toString .Values.runAs) \"platform\" }}platform{{ else }}{{ toJson .Values.runAs | quote }}{{ end }}\n            {{- end }}\n            {{- with .Values.attestedImages }}\n            - name: CODEX_ATTESTED_IMAGES\n              value: {{ join \",\" . | quote }}\n            {{- end }}\n            {{- with .Values.watchNamespaces }}\n            - name: CODEX_WATCH_NAMESPACES\n              value: {{ join \",\" . | quote }}\n            {{- end }}\n            {{- if eq .Values.signing.mode \"keyless\" }}\n            - name: CODEX_SIGNING\n              value: keyless\n            {{- end }}\n            {{- if .Values.leaseDuration }}\n            - name: CODEX_LEASE_DURATION\n              value: {{ int .Values.leaseDuration | quote }}\n            {{- else if gt (int .Values.replicas) 1 }}\n            - name: CODEX_LEASE_DURATION\n              value: \"7\"\n            {{- end }}\n            {{- with .Values.extraEnv }}\n            {{- toYaml . | nindent 12 }}\n            {{- end }}\n          ports:",
    ),
    (
        "          resources:\n            requests:\n              cpu: 20m\n              memory: 32Mi\n            limits:\n              memory: 256Mi\n",
        1,
        "          resources:\n            {{- toYaml .Values.resources | nindent 12 }}\n          {{- if eq .Values.signing.mode \"keyless\" }}\n          volumeMounts:\n            - name: sigstore-token\n              mountPath: /var/run/secrets/codex-ml.dev/sigstore\n              readOnly: true\n          {{- end }}\n",
    ),
    (
        "              drop: [ALL]\n",
        1,
        "              drop: [ALL]\n      {{- if eq .Values.signing.mode \"keyless\" }}\n      volumes:\n        - name: sigstore-token\n          projected:\n            sources:\n              - serviceAccountToken:\n                  path: token\n                  audience: {{ .Values.signing.audience }}\n                  expirationSeconds: 3600\n      {{- end }}\n",
    ),
];

const CRD: &[Edit] = &[(
    "\nmetadata:\n  name: ",
    1,
    "\nmetadata:\n  {{- if .Values.crds.keep }}\n  annotations:\n    helm.sh/resource-policy: keep\n  {{- end }}\n  name: ",
)];

const LABELS: &str = "  labels:\n    {{- with .Values.monitoring.labels }}\n    {{- toYaml . | nindent 4 }}\n    {{- end }}\n    app.kubernetes.io/part-of: codex\n";
const MONITORS: &[Edit] = &[
    ("  namespace: codex-system\n", 4, "  namespace: {{ .Release.Namespace }}\n"),
    ("    - codex-system\n", 1, "    - {{ .Release.Namespace }}\n"),
    ("  labels:\n    app.kubernetes.io/part-of: codex\n", 4, LABELS),
];
const ALERTS: &[Edit] = &[NAMESPACE, ("  labels:\n    app.kubernetes.io/part-of: codex\n", 1, LABELS)];
const DASHBOARDS: &[Edit] = &[("  namespace: codex-system\n", 4, "  namespace: {{ .Release.Namespace }}\n")];

/// The policies, with the principals of the values.
fn admission(text: &str) -> String {
    let administrators = "expression: \"['system:masters']\"\n";
    let listed =
        "expression: {{ printf \"['%s']\" (join \"', '\" .Values.admissionPolicies.administrators) | quote }}\n";
    let text = replace(text, USER, 2, USER_OF_RELEASE);
    let accounts = "expression: \"['system:serviceaccount:argocd:argocd-application-controller']\"\n";
    let gitops = "expression: {{ printf \"['%s']\" (join \"', '\" .Values.admissionPolicies.gitops) | quote }}\n";
    let text = replace(&text, accounts, 1, gitops);
    let text = replace(&text, administrators, 4, listed);
    when(".Values.admissionPolicies.enabled", &text)
}

/// One ClusterRole, or with `watchNamespaces` a Role in each of them beside a small ClusterRole.
fn rbac(text: &str) -> String {
    let text = replace(text, "namespace: codex-system\n", 4, "namespace: {{ .Release.Namespace }}\n");
    let (head, rest) = text.split_once("rules:\n").unwrap();
    let (rules, rest) = rest.split_once("---\n").unwrap();
    let (of_objects, of_cluster) = rules.split_once("  # The promotion policies that hold").unwrap();
    let of_cluster = format!("  # The promotion policies that hold{of_cluster}");
    let comment = head.lines().take_while(|line| line.starts_with('#')).collect::<Vec<_>>().join("\n");
    let role = head.trim_start_matches(|c| c != '\n').trim_start().replace("kind: ClusterRole\n", "kind: Role\n");
    let role = replace(&role, "  name: codex-controller\n", 1, "  name: codex-controller\n  namespace: {{ . }}\n");
    let binding = "apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: codex-controller
  namespace: {{ . }}
  labels:
    app.kubernetes.io/name: codex-controller
    app.kubernetes.io/part-of: codex
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: codex-controller
subjects:
  - kind: ServiceAccount
    name: codex-controller
    namespace: {{ $.Release.Namespace }}
";
    let head = head.trim_start_matches(&comment).trim_start();
    let own = "{{- if has .Release.Namespace .Values.watchNamespaces }}
{{- fail (printf \"watchNamespaces holds %s, the controller's own namespace: its keys must not lie in a tenant's\" .Release.Namespace) }}
{{- end }}
";
    format!(
        "{own}{comment}\n{head}rules:\n  {{{{- if not .Values.watchNamespaces }}}}\n{of_objects}  {{{{- end }}}}\n{of_cluster}\
         {{{{- range .Values.watchNamespaces }}}}\n---\n{role}rules:\n{of_objects}---\n{binding}{{{{- end }}}}\n---\n{rest}"
    )
}

/// Applies edits in order.
fn edit(text: &str, edits: &[Edit]) -> String {
    edits.iter().fold(text.to_owned(), |text, (from, count, to)| replace(&text, from, *count, to))
}

/// Replaces a text that occurs exactly `count` times.
fn replace(text: &str, from: &str, count: usize, to: &str) -> String {
    assert_eq!(
        text.matches(from).count(),
        count,
        "occurrences of {from:?}: the chart's edits must follow the manifests"
    );
    text.replace(from, to)
}

/// Keeps braces of dashboards and alerts out of Helm's hands.
fn escape(text: &str) -> String {
    text.replace("{{", "\u{0}").replace("}}", "\u{1}").replace('\u{0}', "{{ \"{{\" }}").replace('\u{1}', "{{ \"}}\" }}")
}

/// Renders a text only under a condition.
fn when(condition: &str, text: &str) -> String {
    format!("{{{{- if {condition} }}}}\n{text}{{{{- end }}}}\n")
}
