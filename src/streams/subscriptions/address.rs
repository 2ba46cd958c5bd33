//! Where webhooks may go (section 12.8). A URL is checked when it is given; the addresses that its name resolves to are
//! checked again for every connection, so that the name cannot come to lead to an internal address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bourn_protocol::limits::SUBSCRIPTION_TEXT_MAX_BYTES;
use url::{Host, Url};

use super::Refusal;

/// Checks a webhook's URL; `allow_private` lets it lead to this machine and its network.
///
/// # Errors
/// With the rule that it breaks.
pub fn check(text: &str, allow_private: bool) -> Result<Url, Refusal> {
    let url = Url::parse(text).map_err(|_| Refusal::UrlRejected("webhook.url must be a URL"))?;
    if text.len() > SUBSCRIPTION_TEXT_MAX_BYTES || !url.username().is_empty() || url.password().is_some() {
        return Err(Refusal::UrlRejected("webhook.url must be short and name no user"));
    }
    let Some(host) = url.host() else {
        return Err(Refusal::UrlRejected("webhook.url must name a host"));
    };
    let here = match &host {
        Host::Domain(name) => *name == "localhost" || name.ends_with(".localhost"),
        Host::Ipv4(ip) => ip.is_loopback(),
        Host::Ipv6(ip) => ip.is_loopback(),
    };
    match url.scheme() {
        "https" => {}
        "http" if here && allow_private => {}
        _ => return Err(Refusal::UrlRejected("webhook.url must begin with https://")),
    }
    let inside = match &host {
        Host::Domain(_) => here,
        Host::Ipv4(ip) => is_inside((*ip).into()),
        Host::Ipv6(ip) => is_inside((*ip).into()),
    };
    match inside && !allow_private {
        true => Err(Refusal::UrlRejected("webhook.url must not lead to private or local addresses")),
        false => Ok(url),
    }
}

/// Whether an address is not public: this machine, its network, or reserved.
#[must_use]
pub(super) fn is_inside(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_inside_v4(ip),
        IpAddr::V6(ip) => is_inside_v6(ip),
    }
}

fn is_inside_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_multicast()
        || ip.is_documentation()
        || a == 0
        || a >= 240
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 198 && (b == 18 || b == 19))
}

fn is_inside_v6(ip: Ipv6Addr) -> bool {
    let segments = ip.segments();
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_inside_v4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        // An address that embeds one of version 4 is as internal as that: mapped, compatible, NAT64, 6to4.
        [0, 0, 0, 0, 0, 0xffff | 0, high, low] => embedded(high, low) || high == 0,
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
        [0x64, 0xff9b, 1, ..] => true,
        [0x2002, high, low, ..] => embedded(high, low),
        // Only 2000::/3 is public; of that, Teredo, documentation and benchmarks are not.
        [0x2001, 0 | 2 | 0xdb8, ..] => true,
        [0x3fff, second, ..] if second < 0x1000 => true,
        [first, ..] => first & 0xe000 != 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_webhook_goes_to_the_public_over_tls_and_nowhere_else() {
        for good in ["https://example.com/hook", "https://93.184.215.14/", "https://[2606:4700::1111]/"] {
            assert!(check(good, false).is_ok(), "{good}");
        }
        for bad in [
            "http://example.com/",
            "https://localhost/",
            "https://10.0.0.1/",
            "https://127.1/",
            "https://0x7f000001/",
            "https://2130706433/",
            "https://169.254.169.254/latest",
            "https://[::1]/",
            "https://[::ffff:10.0.0.1]/",
            "https://[fd00::1]/",
            "https://[64:ff9b::a00:1]/",
            "https://100.64.0.1/",
            "https://0.0.0.0/",
            "https://user@example.com/",
            "ftp://example.com/",
            "file:///etc/passwd",
            "nonsense",
        ] {
            assert!(check(bad, false).is_err(), "{bad}");
        }
        assert!(check("http://127.0.0.1:9/x", true).is_ok() && check("http://localhost/x", true).is_ok());
        assert!(check("https://10.0.0.1/", true).is_ok());
        assert!(check("http://10.0.0.1/", true).is_err(), "without TLS only to this machine");
    }
}
