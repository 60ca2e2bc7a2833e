//! Parse, set up tracing, run, exit.

fn main() -> std::process::ExitCode {
    cowfs::cli::main()
}
