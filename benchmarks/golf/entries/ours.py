from ssl import*
f=os.fork
t=f()>0
s=socket(2,1+t)
s.bind(('',7))
while t:s.sendto(*s.recvfrom(9**6))
s.listen()
while[c:=s.accept()[0]]*f():c=0
while c.send(c.recv(99)):0