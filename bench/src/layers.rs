//! `layers`: what it costs to ask for a hot chunk in one process, without sockets: of an open server, of one with access control
//! by a token that it knows, and behind layers of `tower-http` that could set the headers which the server keeps with the chunk.

use std::convert::Infallible;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bourn::config::Config;
use bourn::serve::Server;
use bytes::Bytes;
use clap::{Args, ValueEnum};
use http_body_util::Full;
use hyper::body::Body;
use hyper::header::{HeaderName, HeaderValue};
use hyper::{Request, Response};
use ring::hmac;
use tower::{Service, ServiceBuilder};
use tower_http::cors::{Any, CorsLayer};
use tower_http::set_header::SetResponseHeaderLayer;

use crate::process::Bench;
use crate::report::{self, Table, number, ratio};

/// Rows of the log; they fill several chunks, so that the second is final.
const ROWS: usize = 5_000;
/// Rounds, of which the fastest counts: the others were disturbed.
const ROUNDS: usize = 5;
const SECRET: &str = "a secret of more than thirty-two bytes";

#[derive(Args)]
pub(crate) struct Options {
    /// Requests of each round.
    #[arg(long, default_value_t = 200_000)]
    requests: u32,
    /// Print the nanoseconds of one service alone; the whole measurement starts a process for each.
    #[arg(long, hide = true)]
    only: Option<Measured>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Measured {
    Open,
    Token,
    Layered,
}

impl Measured {
    const fn name(self) -> &'static str {
        match self {
            Measured::Open => "an open server",
            Measured::Token => "with access control, by a known token",
            Measured::Layered => "open, behind CorsLayer and two SetResponseHeaderLayers",
        }
    }
}

pub(crate) async fn run(bench: &Bench, options: &Options) -> Result<()> {
    if let Some(only) = options.only {
        report::line(&measure(bench, only, options.requests).await?.to_string());
        return Ok(());
    }
    let mut table =
        Table::new("A hot chunk, asked for in process", &["service", "ns/answer", "to the first"]);
    let mut first = None;
    let services = [Measured::Open, Measured::Token, Measured::Layered];
    let mut best = [f64::INFINITY; 3];
    // In turn, so that all meet the same machine.
    for _ in 0..ROUNDS {
        for (best, service) in best.iter_mut().zip(services) {
            report::progress(service.name());
            let only = service.to_possible_value().context("a service has a name")?;
            let output = Command::new(std::env::current_exe()?)
                .args(["layers", "--only", only.get_name(), "--requests", &options.requests.to_string()])
                .output()?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            *best = best.min(String::from_utf8(output.stdout)?.trim().parse()?);
        }
    }
    for (nanos, service) in best.into_iter().zip(services) {
        table.row([service.name().into(), number(nanos.round()), ratio(nanos, *first.get_or_insert(nanos))]);
    }
    table.print();
    Ok(())
}

/// Nanoseconds per answer.
async fn measure(bench: &Bench, measured: Measured, requests: u32) -> Result<f64> {
    let scratch = bench.scratch()?;
    let file = scratch.path().join("bourn.db");
    rusqlite::Connection::open(&file)?.execute_batch(&format!(
        "CREATE TABLE pages (id INTEGER PRIMARY KEY, text TEXT NOT NULL); \
         WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS}) \
         INSERT INTO pages SELECT i, hex(zeroblob(100)) FROM n"
    ))?;
    let access = if measured == Measured::Token { access(scratch.path())? } else { String::new() };
    let config = Config::from_toml(&format!(
        "database = {:?}\n[[entity]]\ntype = \"page\"\ntable = \"pages\"\n{access}",
        format!("sqlite:{}", file.display())
    ))?;
    let server = Server::open(config).await?;
    let mut service = server.service();
    let running = tokio::spawn(server.run(tokio_util::sync::CancellationToken::new()));
    let bearer = format!("Bearer {}", token()?);
    // The second chunk is final once the comparison has filled the log.
    let final_by = Instant::now() + Duration::from_secs(30);
    let url = loop {
        let first = service.call(request("/v1/entities/pages?offset=-1", &bearer)?).await?;
        let next = first.headers().get("stream-next-offset").and_then(|offset| offset.to_str().ok());
        let url = format!("/v1/entities/pages?offset={}", next.unwrap_or("-1"));
        let second = service.call(request(&url, &bearer)?).await?;
        let control = second.headers().get("cache-control").and_then(|value| value.to_str().ok());
        if control.is_some_and(|control| control.contains("immutable")) {
            break url;
        }
        ensure!(Instant::now() < final_by, "the log has no final chunk: {}", second.status());
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let header = |name, value| {
        SetResponseHeaderLayer::overriding(HeaderName::from_static(name), HeaderValue::from_static(value))
    };
    let elapsed = match measured {
        Measured::Open | Measured::Token => time(service, &url, &bearer, requests).await?,
        Measured::Layered => {
            let layered = ServiceBuilder::new()
                .layer(CorsLayer::new().allow_origin(Any).expose_headers(Any))
                .layer(header("x-content-type-options", "nosniff"))
                .layer(header("cross-origin-resource-policy", "cross-origin"))
                .service(service);
            time(layered, &url, &bearer, requests).await?
        }
    };
    running.abort();
    Ok(elapsed.as_secs_f64() * 1e9 / f64::from(requests))
}

/// Access control with one issuer, whose secret is written into a directory.
fn access(directory: &Path) -> Result<String> {
    let secret = directory.join("secret");
    std::fs::write(&secret, SECRET)?;
    Ok(format!(
        "[access]\nmode = \"token\"\n[[access.issuer]]\niss = \"bench\"\naud = \"bourn\"\nsecret_file = {:?}\n\
         algorithms = [\"HS256\"]\n[[access.role]]\nname = \"reader\"\nread = [\"page\"]\nscopes = [\"*\"]\n",
        secret.display().to_string()
    ))
}

fn token() -> Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let claims = format!(
        r#"{{"iss":"bench","aud":"bourn","sub":"bench","role":"reader","iat":{now},"exp":{}}}"#,
        now + 3_600
    );
    let message =
        format!("{}.{}", URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256"}"#), URL_SAFE_NO_PAD.encode(claims));
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    let signature = URL_SAFE_NO_PAD.encode(hmac::sign(&key, message.as_bytes()));
    Ok(format!("{message}.{signature}"))
}

/// The same request for all of them: an open server does not look at the token.
fn request(url: &str, bearer: &str) -> Result<Request<Full<Bytes>>> {
    let request = Request::builder().uri(url).header("host", "localhost").header("authorization", bearer);
    Ok(request.body(Full::default())?)
}

async fn time<S, B>(mut service: S, url: &str, bearer: &str, requests: u32) -> Result<Duration>
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>, Error = Infallible>,
    B: Body,
{
    let began = Instant::now();
    for _ in 0..requests {
        let reply = service.call(request(url, bearer)?).await?;
        ensure!(reply.status().is_success(), "{}", reply.status());
    }
    Ok(began.elapsed())
}
