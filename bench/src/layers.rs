//! `layers`: what it costs to ask for a hot chunk in this process, without sockets; alone, and behind layers of `tower-http`
//! that could set the headers which the server keeps with the chunk.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bourn::config::Config;
use bourn::serve::Server;
use bytes::Bytes;
use clap::Args;
use http_body_util::Full;
use hyper::body::Body;
use hyper::header::{HeaderName, HeaderValue};
use hyper::{Request, Response};
use tower::{Service, ServiceBuilder};
use tower_http::cors::{Any, CorsLayer};
use tower_http::set_header::SetResponseHeaderLayer;

use crate::process::Bench;
use crate::report::{self, Table, number, ratio};

/// Rows of the log; they fill several chunks, so that the second is final.
const ROWS: usize = 5_000;
/// Rounds, of which the fastest counts: the others were disturbed.
const ROUNDS: usize = 7;

#[derive(Args)]
pub(crate) struct Options {
    /// Requests of each round.
    #[arg(long, default_value_t = 200_000)]
    requests: u32,
}

pub(crate) async fn run(bench: &Bench, options: &Options) -> Result<()> {
    let scratch = bench.scratch()?;
    let file = scratch.path().join("bourn.db");
    let rows = rusqlite::Connection::open(&file)?;
    rows.execute_batch(&format!(
        "CREATE TABLE pages (id INTEGER PRIMARY KEY, text TEXT NOT NULL); \
         WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS}) \
         INSERT INTO pages SELECT i, hex(zeroblob(100)) FROM n"
    ))?;
    drop(rows);
    let config = Config::from_toml(&format!(
        "database = {:?}\n[[entity]]\ntype = \"page\"\ntable = \"pages\"\n",
        format!("sqlite:{}", file.display())
    ))?;
    let server = Server::open(config).await?;
    let own = server.service();
    let running = tokio::spawn(server.run(Default::default()));
    let mut asked = own.clone();
    // The second chunk is final once the comparison has filled the log.
    let final_by = Instant::now() + Duration::from_secs(30);
    let url = loop {
        let first = asked.call(request("/v1/entities/pages?offset=-1")?).await?;
        let next = first.headers().get("stream-next-offset").and_then(|offset| offset.to_str().ok());
        let url = format!("/v1/entities/pages?offset={}", next.unwrap_or("-1"));
        let second = asked.call(request(&url)?).await?;
        let control = second.headers().get("cache-control").and_then(|value| value.to_str().ok());
        if control.is_some_and(|control| control.contains("immutable")) {
            break url;
        }
        ensure!(Instant::now() < final_by, "the log has no final chunk");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let header = |name, value| {
        SetResponseHeaderLayer::overriding(HeaderName::from_static(name), HeaderValue::from_static(value))
    };
    let behind = ServiceBuilder::new()
        .layer(CorsLayer::new().allow_origin(Any).expose_headers(Any))
        .layer(header("x-content-type-options", "nosniff"))
        .layer(header("cross-origin-resource-policy", "cross-origin"))
        .service(own.clone());
    let (mut alone, mut layered) = (Duration::MAX, Duration::MAX);
    // In turn, so that both meet the same machine.
    for _ in 0..ROUNDS {
        alone = alone.min(time(own.clone(), &url, options.requests).await?);
        layered = layered.min(time(behind.clone(), &url, options.requests).await?);
    }
    let mut table =
        Table::new("A hot chunk, asked for in process", &["service", "ns/answer", "to the first"]);
    let nanos = |total: Duration| total.as_secs_f64() * 1e9 / f64::from(options.requests);
    for (name, total) in
        [("Bourn", alone), ("Bourn behind CorsLayer and two SetResponseHeaderLayers", layered)]
    {
        table.row([name.into(), number(nanos(total).round()), ratio(nanos(total), nanos(alone))]);
    }
    table.print();
    running.abort();
    Ok(())
}

fn request(url: &str) -> Result<Request<Full<Bytes>>> {
    Ok(Request::builder().uri(url).header("host", "localhost").body(Full::default())?)
}

async fn time<S, B>(mut service: S, url: &str, requests: u32) -> Result<Duration>
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>, Error = Infallible>,
    B: Body,
{
    let began = Instant::now();
    for _ in 0..requests {
        let reply = service.call(request(url)?).await?;
        ensure!(reply.status().is_success(), "{}", reply.status());
    }
    report::progress("a round is done");
    Ok(began.elapsed())
}
