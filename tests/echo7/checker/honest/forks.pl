# An honest server: a process for each connection, another for UDP. Arguments: HOST PORT.
use strict;
use warnings;
use Socket;
use IO::Socket::INET;
my ($host, $port) = @ARGV;
$SIG{CHLD} = 'IGNORE';
my $udp = IO::Socket::INET->new(Proto => 'udp', LocalAddr => $host, LocalPort => $port) or die $!;
my $tcp = IO::Socket::INET->new(Proto => 'tcp', LocalAddr => $host, LocalPort => $port, Listen => 256, ReuseAddr => 1) or die $!;
if (!fork) {
    while (1) {
        my $from = recv($udp, my $data, 65536, 0);
        send($udp, $data, 0, $from) if defined $from;
    }
}
while (1) {
    my $client = $tcp->accept or next;
    if (!fork) {
        while (sysread $client, my $data, 65536) {
            for (my $at = 0; $at < length $data;) {
                $at += syswrite($client, $data, length($data) - $at, $at) || exit;
            }
        }
        exit;
    }
    close $client;
}
