//! An axum application that keeps notes in a SQLite file, with Bourn mounted beside its own routes: what its routes write by
//! SQL, readers of `/feed` see at once.
//!
//! ```sh
//! cargo run --example axum -- notes.db 127.0.0.1:3000
//! curl -N 'http://127.0.0.1:3000/feed/v1/entities/notes?offset=-1&live=sse' &
//! curl -X POST 'http://127.0.0.1:3000/notes?text=hello'
//! ```

#![allow(clippy::print_stdout, reason = "it is a program for a terminal")]

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::routing::post;
use bourn::config::Config;
use bourn::serve::Server;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

/// The application's own connection. Bourn watches the file for what it commits.
type Notes = Arc<Mutex<rusqlite::Connection>>;

#[derive(Deserialize)]
struct Note {
    text: String,
}

async fn add(State(notes): State<Notes>, Query(note): Query<Note>) -> Result<StatusCode, StatusCode> {
    let added = tokio::task::spawn_blocking(move || {
        let notes = notes.lock().map_err(|_| rusqlite::Error::InvalidQuery)?;
        notes.execute("INSERT INTO notes (text) VALUES (?1)", [&note.text])
    });
    match added.await {
        Ok(Ok(_)) => Ok(StatusCode::CREATED),
        _ => Err(StatusCode::SERVICE_UNAVAILABLE),
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let file = PathBuf::from(arguments.next().unwrap_or_else(|| "notes.db".into()));
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:3000".into());

    let notes = rusqlite::Connection::open(&file)?;
    notes.busy_timeout(std::time::Duration::from_secs(5))?;
    notes.execute_batch("CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, text TEXT NOT NULL)")?;

    let listener = tokio::net::TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    let config = Config::from_toml(&format!(
        "database = {:?}\npublic_url = \"http://{address}/feed\"\n[[entity]]\ntype = \"note\"\ntable = \"notes\"\n",
        format!("sqlite:{}", file.display())
    ))?;
    let server = Server::open(config).await?;
    let application = Router::new()
        .route("/notes", post(add))
        .with_state(Arc::new(Mutex::new(notes)))
        .nest_service("/feed", server.service());

    let stop = CancellationToken::new();
    let running = tokio::spawn(server.run(stop.clone()));
    println!("listening on http://{address}");
    let told_to_stop = stop.clone();
    axum::serve(listener, application)
        .with_graceful_shutdown(async move {
            let _ = tokio::signal::ctrl_c().await;
            // Ends the event streams that axum waits for.
            told_to_stop.cancel();
        })
        .await?;
    running.await??;
    Ok(())
}
