// An honest server: a thread for each connection, another for UDP. Arguments: HOST PORT.
import java.io.*;
import java.net.*;

public class Echo {
    public static void main(String[] arguments) throws Exception {
        InetAddress host = InetAddress.getByName(arguments[0]);
        int port = Integer.parseInt(arguments[1]);
        DatagramSocket udp = new DatagramSocket(port, host);
        ServerSocket tcp = new ServerSocket(port, 256, host);
        new Thread(() -> datagrams(udp)).start();
        while (true) {
            Socket client = tcp.accept();
            new Thread(() -> connection(client)).start();
        }
    }

    static void datagrams(DatagramSocket udp) {
        byte[] data = new byte[65536];
        while (true) {
            try {
                DatagramPacket packet = new DatagramPacket(data, data.length);
                udp.receive(packet);
                udp.send(packet);
            } catch (IOException error) {
            }
        }
    }

    static void connection(Socket client) {
        try (client) {
            client.setTcpNoDelay(true);
            InputStream in = client.getInputStream();
            OutputStream out = client.getOutputStream();
            byte[] data = new byte[65536];
            for (int size; (size = in.read(data)) >= 0;) out.write(data, 0, size);
        } catch (IOException error) {
        }
    }
}
