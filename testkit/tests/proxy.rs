//! The proxy: what it does to connections that pass through it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use bourn_testkit::{Proxy, Way};

/// Long enough to see that nothing comes.
const MOMENT: Duration = Duration::from_millis(100);

/// A server that sends back what it is sent; gives its address.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut copy = stream.try_clone().unwrap();
                let _ = std::io::copy(&mut copy, &mut stream);
                let _ = stream.shutdown(Shutdown::Write);
            });
        }
    });
    address
}

fn connect(proxy: &Proxy) -> TcpStream {
    let stream = TcpStream::connect(proxy.address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

fn ask(stream: &mut TcpStream, question: &[u8]) -> std::io::Result<Vec<u8>> {
    stream.write_all(question)?;
    let mut answer = vec![0; question.len()];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

#[track_caller]
fn assert_works(stream: &mut TcpStream) {
    assert_eq!(ask(stream, b"question").unwrap(), b"question");
}

#[track_caller]
fn assert_silent(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(MOMENT)).unwrap();
    let kind = stream.read(&mut [0; 1]).unwrap_err().kind();
    assert!(matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut), "{kind}");
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
}

#[track_caller]
fn assert_reset(stream: &mut TcpStream) {
    let kind = stream.read(&mut [0; 1]).unwrap_err().kind();
    assert_eq!(kind, ErrorKind::ConnectionReset);
}

#[test]
fn bytes_and_ends_pass_in_both_directions() {
    let proxy = Proxy::start(echo());
    let mut stream = connect(&proxy);
    let sent: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let mut writer = stream.try_clone().unwrap();
    let all = sent.clone();
    let writing = std::thread::spawn(move || {
        writer.write_all(&all).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    writing.join().unwrap();
    assert!(received == sent, "{} bytes", received.len());
}

#[test]
fn a_delay_holds_both_directions_up_without_holding_each_byte_up_again() {
    let proxy = Proxy::start(echo());
    let mut stream = connect(&proxy);
    assert_works(&mut stream);
    proxy.delay(Way::Both, MOMENT);
    let began = Instant::now();
    for _ in 0..10 {
        stream.write_all(b"12345678").unwrap();
    }
    stream.read_exact(&mut [0; 80]).unwrap();
    let took = began.elapsed();
    assert!(took >= 2 * MOMENT && took < 20 * MOMENT, "{took:?}");
}

#[test]
fn a_limit_slows_one_direction_down() {
    let proxy = Proxy::start(echo());
    let mut stream = connect(&proxy);
    proxy.limit(Way::Down, 100_000);
    let began = Instant::now();
    assert_eq!(ask(&mut stream, &[7; 40_000]).unwrap().len(), 40_000);
    assert!(began.elapsed() >= Duration::from_millis(150), "{:?}", began.elapsed());
}

#[test]
fn open_connections_are_cut_and_new_ones_work() {
    let proxy = Proxy::start(echo());
    let mut streams = [connect(&proxy), connect(&proxy)];
    streams.iter_mut().for_each(assert_works);
    assert_eq!(proxy.connections(), 2);
    proxy.cut();
    streams.iter_mut().for_each(assert_reset);
    assert_eq!(proxy.connections(), 0);
    assert_works(&mut connect(&proxy));
}

#[test]
fn new_connections_are_reset_or_refused_while_open_ones_go_on() {
    let proxy = Proxy::start(echo());
    let mut open = connect(&proxy);
    assert_works(&mut open);
    proxy.cut_new();
    let late = TcpStream::connect(proxy.address());
    if let Ok(mut late) = late {
        assert!(ask(&mut late, b"x").is_err());
    }
    proxy.refuse();
    assert_eq!(TcpStream::connect(proxy.address()).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert_works(&mut open);
    proxy.heal();
    assert_works(&mut connect(&proxy));
    assert_works(&mut open);
}

#[test]
fn a_half_open_connection_takes_everything_says_nothing_and_is_reset_in_the_end() {
    for way in [Way::Up, Way::Down, Way::Both] {
        let proxy = Proxy::start(echo());
        let (mut stream, mut idle) = (connect(&proxy), connect(&proxy));
        assert_works(&mut stream);
        assert_works(&mut idle);
        proxy.swallow(way);
        stream.write_all(&[1; 4_000_000]).unwrap();
        assert_silent(&mut stream);
        let mut late = connect(&proxy);
        late.write_all(b"x").unwrap();
        late.shutdown(Shutdown::Write).unwrap();
        assert_silent(&mut late);
        proxy.heal();
        assert_reset(&mut stream);
        assert_reset(&mut late);
        assert_works(&mut idle);
    }
}

#[test]
fn a_stalled_connection_goes_on_where_it_was() {
    let proxy = Proxy::start(echo());
    let mut stream = connect(&proxy);
    assert_works(&mut stream);
    proxy.stall(Way::Both);
    stream.write_all(b"held").unwrap();
    assert_silent(&mut stream);
    proxy.heal();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"held");
}

#[test]
fn another_upstream_takes_over_and_a_missing_one_resets() {
    let proxy = Proxy::start(echo());
    let mut stream = connect(&proxy);
    assert_works(&mut stream);
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    proxy.redirect(nobody);
    assert_reset(&mut stream);
    assert!(ask(&mut connect(&proxy), b"x").is_err());
    proxy.redirect(echo());
    assert_works(&mut connect(&proxy));
}

#[test]
fn everything_ends_with_the_proxy() {
    let proxy = Proxy::start(echo());
    let address = proxy.address();
    let mut stream = connect(&proxy);
    assert_works(&mut stream);
    proxy.stall(Way::Both);
    drop(proxy);
    assert_reset(&mut stream);
    assert!(TcpStream::connect(address).is_err());
}
