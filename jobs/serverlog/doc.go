package serverlog
