// Echo on Node's net and dgram. `node echo.js tcp|udp HOST PORT`
'use strict';

const [kind, host, port] = process.argv.slice(2);

if (kind === 'tcp') {
  const server = require('net').createServer({ noDelay: true, allowHalfOpen: true }, (socket) => {
    socket.on('error', () => socket.destroy());
    socket.pipe(socket);
  });
  server.listen({ host, port: Number(port), backlog: 4096 });
} else {
  const socket = require('dgram').createSocket('udp4');
  socket.on('message', (data, from) => socket.send(data, from.port, from.address));
  socket.bind(Number(port), host);
}
