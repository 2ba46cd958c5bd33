//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;

use bourn::config::{Config, Limits, ListenerRole, SettingsLayer};
use bourn::databases::{self, OpenError};
use bourn::serve::Server;
use bourn::telemetry;
use clap::{Args, Parser, Subcommand};
use tokio_util::sync::CancellationToken;

/// Turns the tables of a database into HTTP streams: resumable, cacheable, live.
#[derive(Parser)]
#[command(name = "bourn", version, max_term_width = 100, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Options,
}

#[derive(Subcommand)]
enum Command {
    /// Serve (what `bourn` alone does).
    Serve(Options),
    /// Say what the database lacks, without changing it.
    Check(Options),
    /// Print the SQL that prepares the database; with --apply, run it.
    Prepare {
        #[command(flatten)]
        options: Options,
        /// Run the SQL instead of printing it.
        #[arg(long)]
        apply: bool,
    },
    /// Let an entity type go on whose capture has stopped at a row that the log refuses: the table is compared with the log,
    /// and the row is passed over for as long as it is refused. `bourn check` lists what has stopped.
    Skip {
        /// The entity type's name, such as `page`.
        entity_type: String,
        #[command(flatten)]
        options: Options,
    },
    /// Act on the log of changes.
    #[command(subcommand)]
    Log(LogCommand),
    /// Print the configuration in force, as a file that would give it again.
    Config {
        #[command(flatten)]
        options: Options,
        /// Print passwords, too.
        #[arg(long)]
        show_secrets: bool,
    },
}

#[derive(Subcommand)]
enum LogCommand {
    /// Give the log a new epoch: every client is answered 410 and starts again. Needed only where a database was put back in
    /// a way that cannot be noticed, as with a snapshot of the whole machine.
    Renew(Options),
}

#[derive(Args)]
struct Options {
    /// The TOML file with settings and entities.
    #[arg(long, env = "BOURN_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: SettingsLayer,
}

impl Options {
    fn load(self) -> Result<Config, String> {
        Config::load(self.settings, self.config.as_deref()).map_err(|error| error.to_string())
    }

    /// The same for a command about the database's tables. Without a file that names tables it is about the demo's, which
    /// its user may not know.
    fn load_tables(self) -> Result<Config, String> {
        let named = self.config.is_some();
        let config = self.load()?;
        if config.demo && !named {
            let database = config.limits.database.shown();
            let text = format!(
                "bourn: no configuration file names tables, so this is about the demo's tables in {database}; name yours with \
                 --config FILE"
            );
            say(&mut std::io::stderr(), &text);
        }
        Ok(config)
    }
}

/// Runs the command; failures go to standard error, in one line.
pub(super) fn main() -> ExitCode {
    let Cli { command, serve } = Cli::parse();
    match run(command.unwrap_or(Command::Serve(serve))) {
        Ok(code) => code,
        Err(error) => {
            say(&mut std::io::stderr(), &format!("bourn: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode, String> {
    warn_of_unknown_variables();
    let text = |error: OpenError| error.to_string();
    let mut out = std::io::stdout();
    match command {
        Command::Serve(options) => serve(options.load()?),
        Command::Config { options, show_secrets } => {
            let config = options.load()?;
            let config = if show_secrets { config } else { config.without_secrets() };
            say(&mut out, config.to_toml().trim_end());
            Ok(ExitCode::SUCCESS)
        }
        Command::Log(LogCommand::Renew(options)) => {
            let limits = options.load()?.limits;
            runtime()?.block_on(databases::renew_log(&limits)).map_err(text)?;
            let database = limits.database.shown();
            say(&mut out, &format!("the log in {database} has a new epoch; every client starts again"));
            Ok(ExitCode::SUCCESS)
        }
        Command::Skip { entity_type, options } => {
            let limits = options.load()?.limits;
            let key = runtime()?.block_on(databases::skip(&limits, &entity_type)).map_err(text)?;
            let words = "is passed over for as long as the log refuses it; the server compares the table with the log";
            say(&mut out, &format!("{entity_type}: row `{key}` {words}"));
            Ok(ExitCode::SUCCESS)
        }
        Command::Check(options) => {
            let findings = runtime()?.block_on(databases::check(&options.load_tables()?)).map_err(text)?;
            for finding in &findings {
                say(&mut out, &format!("{} {}", if finding.fine { "ok  " } else { "FAIL" }, finding.text));
            }
            Ok(if findings.iter().all(|finding| finding.fine) {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            })
        }
        Command::Prepare { options, apply: false } => {
            say(
                &mut out,
                &runtime()?.block_on(databases::prepare_sql(&options.load_tables()?)).map_err(text)?,
            );
            Ok(ExitCode::SUCCESS)
        }
        Command::Prepare { options, apply: true } => {
            let config = options.load_tables()?;
            for line in runtime()?.block_on(databases::prepare(&config)).map_err(text)? {
                say(&mut out, &line);
            }
            let tables: Vec<&str> = config.entities.iter().map(|entity| entity.table.as_str()).collect();
            let database = config.limits.database.shown();
            say(&mut out, &format!("{database} is prepared for {}", tables.join(", ")));
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Writes a line; a closed pipe is no reason to fail.
fn say(out: &mut dyn std::io::Write, line: &str) {
    let _ = writeln!(out, "{line}");
}

/// A misspelt variable must not be passed over in silence. It is no error: Kubernetes makes variables of these names by
/// itself for every Service that is called `bourn`.
fn warn_of_unknown_variables() {
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("BOURN_")
            && name != "BOURN_CONFIG"
            && !Limits::ENVIRONMENT.contains(&name.as_ref())
        {
            let text = format!(
                "bourn: there is no setting for the environment variable {name}, so it is ignored; `bourn serve --help` lists \
                 them"
            );
            say(&mut std::io::stderr(), &text);
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, String> {
    let built = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    built.map_err(|error| error.to_string())
}

fn serve(config: Config) -> Result<ExitCode, String> {
    telemetry::init_logs(&config.limits.log, config.limits.log_format)?;
    #[cfg(feature = "failpoints")]
    let _failpoints = fail::FailScenario::setup();
    runtime()?.block_on(async {
        let stop = stop_on_signal()?;
        let described = config.clone();
        let server = Server::start(config).await.map_err(|error| error.to_string())?;
        let addresses = server.addresses();
        for (role, url) in &addresses {
            tracing::info!(url, ?role, version = env!("CARGO_PKG_VERSION"), "serving");
        }
        let public = addresses.iter().find(|(role, _)| *role == ListenerRole::Public);
        let url = public.map(|(_, url)| url.as_str()).unwrap_or_default();
        say(&mut std::io::stdout(), &introduction(&described, url, &server.unavailable()));
        server.run(stop).await.map_err(|failure| format!("{failure}; the server has stopped"))
    })?;
    Ok(ExitCode::SUCCESS)
}

/// A few lines on how to try it, and on what cannot be served.
fn introduction(config: &Config, url: &str, unavailable: &[(std::sync::Arc<str>, String)]) -> String {
    let mut text = format!("bourn serves {} on {url}", config.limits.database.shown());
    let is_available = |name: &str| unavailable.iter().all(|(other, _)| **other != *name);
    if let Some(entity) = config.entities.iter().find(|entity| is_available(&entity.name)) {
        let table = &entity.table;
        let sample = match config.demo {
            true => r#"{"organization_id":"acme","name":"Hello"}"#,
            false => r#"{…}"#,
        };
        text += &format!(
            "\n  follow:  curl -N '{url}/v1/entities/{table}?offset=-1&live=sse'\n  \
             write:   curl -X POST {url}/v1/entities/{table} -H 'Content-Type: application/json' -d '{sample}'"
        );
    }
    for (name, reason) in unavailable {
        text += &format!("\n  not served: {name}: {reason}");
    }
    text
}

/// A token that fires on SIGTERM or SIGINT.
fn stop_on_signal() -> Result<CancellationToken, String> {
    use tokio::signal::unix::{SignalKind, signal};
    let stop = CancellationToken::new();
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind).map_err(|error| error.to_string())?;
        let stop = stop.clone();
        tokio::spawn(async move {
            signals.recv().await;
            // First, for the log line may fail.
            stop.cancel();
            tracing::info!("stopping");
        });
    }
    Ok(stop)
}
