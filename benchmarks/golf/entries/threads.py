from socket import*
from threading import*
def f(c,_):
 while d:=c.recv(4096):c.sendall(d)
 c.close()
def g():
 while 1:u.sendto(*u.recvfrom(65536))
u=socket(2,2)
u.bind(('',7))
Thread(target=g).start()
s=create_server(('',7))
while 1:Thread(target=f,args=s.accept()).start()