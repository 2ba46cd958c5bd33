//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;

use bourn::config::{Config, Limits, SettingsLayer};
use bourn::server::Server;
use bourn::storage::{self, OpenError};
use bourn::telemetry;
use clap::{Args, Parser, Subcommand};
use tokio_util::sync::CancellationToken;

/// Turns the tables of a database into HTTP streams: resumable, cacheable, live.
#[derive(Parser)]
#[command(name = "bourn", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
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
    /// Print the configuration in force, as a file that would give it again.
    Config(Options),
}

#[derive(Args)]
struct Options {
    /// The TOML file with settings and entities.
    #[arg(long, env = "BOURN_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: SettingsLayer,
}

/// Runs the command; failures go to standard error, in one line.
pub(super) fn main() -> ExitCode {
    let command = match Cli::parse().command {
        Some(command) => command,
        // `bourn` alone: the same parser once more, so that the environment is read the same way.
        None => match Cli::parse_from(["bourn", "serve"]).command {
            Some(command) => command,
            None => return ExitCode::FAILURE,
        },
    };
    match run(command) {
        Ok(code) => code,
        Err(error) => {
            say(&mut std::io::stderr(), &format!("bourn: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode, String> {
    refuse_unknown_variables()?;
    let load = |options: Options| {
        Config::load(options.settings, options.config.as_deref()).map_err(|error| error.to_string())
    };
    let text = |error: OpenError| error.to_string();
    let mut out = std::io::stdout();
    match command {
        Command::Serve(options) => serve(load(options)?),
        Command::Config(options) => {
            say(&mut out, load(options)?.to_toml().trim_end());
            Ok(ExitCode::SUCCESS)
        }
        Command::Check(options) => {
            let findings = runtime()?.block_on(storage::check(&load(options)?)).map_err(text)?;
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
            say(&mut out, &runtime()?.block_on(storage::prepare_sql(&load(options)?)).map_err(text)?);
            Ok(ExitCode::SUCCESS)
        }
        Command::Prepare { options, apply: true } => {
            for line in runtime()?.block_on(storage::prepare(&load(options)?)).map_err(text)? {
                say(&mut out, &line);
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Writes a line; a closed pipe is no reason to fail.
fn say(out: &mut dyn std::io::Write, line: &str) {
    let _ = writeln!(out, "{line}");
}

/// A misspelt variable must not be passed over in silence.
fn refuse_unknown_variables() -> Result<(), String> {
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("BOURN_")
            && name != "BOURN_CONFIG"
            && !Limits::ENVIRONMENT.contains(&name.as_ref())
        {
            return Err(format!(
                "there is no setting for the environment variable {name}; `bourn serve --help` lists them"
            ));
        }
    }
    Ok(())
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
        let introduction = introduction(&config);
        let server = Server::start(config).await.map_err(|error| error.to_string())?;
        let address = server.address().map_err(|error| error.to_string())?;
        if !address.ip().is_loopback() {
            tracing::warn!(%address, "anyone who reaches this address can read and write: there is no access control yet");
        }
        tracing::info!(%address, version = env!("CARGO_PKG_VERSION"), "serving");
        say(&mut std::io::stdout(), &introduction.replace("{address}", &address.to_string()));
        server.run(stop).await.map_err(|failure| format!("{failure}; the server has stopped"))
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Three lines on how to try it.
fn introduction(config: &Config) -> String {
    let table = config.entities.first().map_or("pages", |entity| entity.table.as_str());
    let sample = match config.demo {
        true => r#"{"organization_id":"acme","name":"Hello"}"#,
        false => r#"{…}"#,
    };
    format!(
        "bourn serves {} on http://{{address}}\n  \
         follow:  curl -N 'http://{{address}}/v1/entities/{table}?offset=-1&live=sse'\n  \
         write:   curl -X POST http://{{address}}/v1/entities/{table} -H 'Content-Type: application/json' -d '{sample}'",
        config.limits.database.shown()
    )
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
