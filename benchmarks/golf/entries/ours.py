import socketserver as S
def f(c,*_):
 while c.send(c.recv(99)):0
a='',7
u=S.UDPServer(a,f).socket
S.os.fork()or S.ThreadingTCPServer(a,f).serve_forever()
while 1:u.sendto(*u.recvfrom(9**6))