// An honest server: a thread for each connection, another for UDP. Arguments: HOST PORT.
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::thread::spawn;

fn serve(mut client: TcpStream) -> std::io::Result<()> {
    let mut data = vec![0; 65536];
    loop {
        let size = client.read(&mut data)?;
        if size == 0 {
            return Ok(());
        }
        client.write_all(&data[..size])?;
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let address = format!("{}:{}", arguments[1], arguments[2]);
    let udp = UdpSocket::bind(&address).unwrap();
    let tcp = TcpListener::bind(&address).unwrap();
    spawn(move || {
        let mut data = vec![0; 65536];
        loop {
            if let Ok((size, source)) = udp.recv_from(&mut data) {
                let _ = udp.send_to(&data[..size], source);
            }
        }
    });
    for client in tcp.incoming() {
        if let Ok(client) = client {
            spawn(move || serve(client));
        }
    }
}
