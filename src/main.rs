//! The `bourn` command: reads the configuration, then serves, checks, prepares or prints.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
