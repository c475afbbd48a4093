//! The tools under the protocol, as the official SDK has it. Reads files; uses standard input and output.

use codex::error::chain;
use rmcp::{
    ErrorData, ServerHandler, ServiceExt as _,
    handler::server::{router::tool::ToolRouter, wrapper::Parameters},
    model::{CallToolResult, ContentBlock, Implementation, ServerCapabilities, ServerConfig},
    tool, tool_handler, tool_router,
    transport::stdio,
};
use serde_json::Value;

use super::look::{Folder, Judging, LookError, Root, Rows, Run, Verifying};

/// What a client is told about the server.
const INSTRUCTIONS: &str = "Reads training runs of Codex, their metrics, evaluations, verdicts and signatures. Nothing is ever \
    written. Paths are relative to the root; begin with list_runs. A verdict here is about the files alone: the cluster's own verdict \
    is in the status of its Evaluation.";

/// The server.
#[derive(Clone)]
pub(super) struct Server {
    root: Root,
    tool_router: ToolRouter<Self>,
}

/// Answers over standard input and output until the input ends.
///
/// # Errors
/// The client breaks the protocol.
pub(super) async fn serve(root: Root) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    match Server::new(root).serve(stdio()).await {
        Ok(service) => drop(service.waiting().await?),
        // A client that goes away before it says anything is no failure.
        Err(rmcp::service::ServerInitializeError::ConnectionClosed(_)) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

#[tool_router]
impl Server {
    pub(super) fn new(root: Root) -> Self {
        Self { root, tool_router: Self::tool_router() }
    }

    #[tool(
        description = "List the runs and models below a folder: path, kind, template, owner, number of evaluations.",
        annotations(read_only_hint = true, open_world_hint = false)
    )]
    async fn list_runs(&self, Parameters(asked): Parameters<Folder>) -> Result<CallToolResult, ErrorData> {
        self.answer(move |root| root.list_runs(&asked)).await
    }

    #[tool(
        description = "Show a run: metadata, digest of its configuration, data, environment, last step, evaluations.",
        annotations(read_only_hint = true, open_world_hint = false)
    )]
    async fn show_run(&self, Parameters(asked): Parameters<Run>) -> Result<CallToolResult, ErrorData> {
        self.answer(move |root| root.show_run(&asked)).await
    }

    #[tool(
        description = "Return the newest rows of a run's metrics ledger, the newest one last.",
        annotations(read_only_hint = true, open_world_hint = false)
    )]
    async fn tail_metrics(&self, Parameters(asked): Parameters<Rows>) -> Result<CallToolResult, ErrorData> {
        self.answer(move |root| root.tail_metrics(&asked)).await
    }

    #[tool(
        description = "List the evaluations of a run with their measurements; each is compared with its own digest.",
        annotations(read_only_hint = true, open_world_hint = false)
    )]
    async fn list_evaluations(&self, Parameters(asked): Parameters<Run>) -> Result<CallToolResult, ErrorData> {
        self.answer(move |root| root.list_evaluations(&asked)).await
    }

    #[tool(
        description = "Judge an evaluation by a file of gates, as the controller does: Passed, Failed or Inconclusive.",
        annotations(read_only_hint = true, open_world_hint = false)
    )]
    async fn judge_evaluation(&self, Parameters(asked): Parameters<Judging>) -> Result<CallToolResult, ErrorData> {
        self.answer(move |root| root.judge_evaluation(&asked)).await
    }

    #[tool(
        description = "Compute the digest of a model and, with a key, verify its signature and its promotion.",
        annotations(read_only_hint = true, open_world_hint = false)
    )]
    async fn verify_model(&self, Parameters(asked): Parameters<Verifying>) -> Result<CallToolResult, ErrorData> {
        self.answer(move |root| root.verify_model(&asked)).await
    }

    /// Looks in another thread: hashing a model takes long, and the client may ask for something else meanwhile.
    async fn answer(
        &self,
        look: impl FnOnce(&Root) -> Result<Value, LookError> + Send + 'static,
    ) -> Result<CallToolResult, ErrorData> {
        let root = self.root.clone();
        let looked = tokio::task::spawn_blocking(move || look(&root)).await;
        match looked.map_err(|error| ErrorData::internal_error(error.to_string(), None))? {
            Ok(value) => Ok(CallToolResult::structured(value)),
            // The caller reads the sentence and asks for something else.
            Err(error) => Ok(CallToolResult::error(vec![ContentBlock::text(chain(&error))])),
        }
    }
}

#[tool_handler(router = self.tool_router)]
impl ServerHandler for Server {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
            .with_server_info(Implementation::new("codex-tools", env!("CARGO_PKG_VERSION")))
            .with_instructions(INSTRUCTIONS)
    }
}
