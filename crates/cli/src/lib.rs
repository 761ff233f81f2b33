//! The command line: arguments, cloud life cycle, image commands, built-in client.
