module corelog/clients

go 1.26.0
