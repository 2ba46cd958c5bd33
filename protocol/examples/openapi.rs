//! Prints the OpenAPI description.

use std::io::Write;

fn main() -> std::io::Result<()> {
    std::io::stdout().write_all(bourn_protocol::openapi::to_json().as_bytes())
}
